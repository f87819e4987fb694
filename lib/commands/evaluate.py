"""`--test-only`: evaluates a network on recomputed features of the training and test images."""

from pathlib import Path

from datasets.pipeline import Pipeline
from lib.commands.call import Call, load_network, open_images
from lib.commands.start import Resumed, resumed_path
from lib.errors import one_line
from lib.evaluation.evaluator import Evaluated, Evaluator
from lib.nn.embedder import Embedder
from lib.runtime.atomic import writing
from lib.session.folder import SessionFolder, check_own_files
from lib.training.state import build_embedder


def evaluate(call: Call) -> None:
    """Evaluate the network of a checkpoint or a file of weights.

    Raises:
        UserError: the file holds another network, or the images do not allow a protocol.
    """
    pipeline = open_images(call.options, call.world, call.process)
    embedder = build_embedder(call.options, call.world, call.dtype)
    evaluator = Evaluator(call.options, pipeline, call.world)
    load_network(embedder.network, call.options, call.start)
    print_results(call, pipeline, evaluator, embedder)


def print_results(call: Call, pipeline: Pipeline, evaluator: Evaluator, embedder: Embedder) -> None:
    """Compute the results and print them.

    The run is not changed. Results too long for a terminal are written to files of its session.
    """
    evaluator.check_all()
    source = resumed_path(call.start)
    session = None if source is None or call.options.debug else SessionFolder.of_checkpoint(source)
    saved = call.start.checkpoint if isinstance(call.start, Resumed) else {}
    data = saved.get("dataset", {})
    other = data.get("fingerprint", pipeline.fingerprint) != pipeline.fingerprint
    if call.world.is_first and (other or pipeline.train.replaced(data.get("contents")).are_other_pictures):
        session = None
        print(
            f"{source}: trained on other images ({data.get('name')}, {data.get('size')}) than these ({pipeline.name}, "
            f"{len(pipeline.train)}), which are preprocessed as those were; nothing is written into its session"
        )
    if session is not None:
        check_own_files(session)
    evaluated, _ = evaluator.evaluate_finished(embedder)
    if not call.world.is_first:
        return
    for line in (*pipeline.notes, *pipeline.cautions):
        print(f"{pipeline.name}: {one_line(line)}")
    name = f"{source}: round {saved['round']}, epoch {saved['epoch']}" if saved else call.options.pretrained
    for protocol, results in evaluated:
        print(f"{name}: {protocol.name} {results.summary} (training features recomputed)")
        if results.table:
            print(results.table)
    if session is not None:
        with writing(session.path):  # last, so that results are shown even if it fails
            for path in write_files(evaluated, session.path):
                print(f"written: {path}")


def write_files(evaluated: Evaluated, folder: Path) -> list[Path]:
    """Write the files of all results into a folder; returns their paths."""
    return [path for _, results in evaluated for path in results.write(folder)]
