"""Session folders made by hand, without training, and the tables that a run writes."""

import csv
import json


def make(folder, rounds=2, epochs=2, done=None, accuracies=True, starts=True, final=None, **options):
    """A session folder as a run of so many rounds and epochs leaves it after `done` epochs."""
    folder.mkdir(parents=True)
    options = {"max_round": rounds, "max_epoch": epochs, "dataset": "digits", **options}
    lines = [f"{name}: {value}" for name, value in options.items()]
    (folder / "config.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    records = []
    for step in range(rounds * epochs if done is None else done):
        number, epoch = divmod(step, epochs)
        records.append({
            "round": number, "epoch": epoch + 1, "anchors": 10 * number, "consistency": 0.75 if number else None,
            "loss": 5 - 0.5 * step, "lr": 0.03, "knn_top1": 0.1 * (step + 1) if accuracies else None,
            "knn_top5": None, "images_per_second": 100.0, "seconds": 2.0,
        })  # fmt: skip
    if records:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if starts:
        start = {"command": "python3 main.py", "code": "abc", "device": "CPU", "precision": "float32", "processes": 1,
                 "train_images": options.get("limit_train", 50), "test_images": 20, "skipped_images": 0,
                 "versions": {"torch": "2.0"}, "time": "2026-01-01 12:00:00+00:00"}  # fmt: skip
        (folder / "starts.jsonl").write_text(json.dumps(start) + "\n")
    if final is not None:
        last = records[-1]
        record = {"round": last["round"], "epoch": last["epoch"], "top1": final, "top5": 1.0}
        (folder / "final.json").write_text(json.dumps(record))
    return folder


def read_table(path):
    """The rows of a CSV file, all values as text."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))
