"""Time all cases or the named ones, print a table and write a dated report.

python3 -m benchmarks                         # all, some minutes on two cores
python3 -m benchmarks head discovery          # two cases
python3 -m benchmarks --gpus cpu --repeats 5
python3 -m benchmarks route                   # no times: the files that a step, a round and a checkpoint pass through
"""

import argparse

from benchmarks.cases import CASES
from benchmarks.report import table, write
from benchmarks.setting import Setting, as_in_a_run
from lib.runtime.device import choose_device


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; none: all")
    parser.add_argument("--gpus", default="auto", help="as for main.py (default: auto)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each contender (default: 3)")
    parser.add_argument("--no-report", action="store_true", help="print only")
    arguments = parser.parse_args()
    if arguments.cases == ["route"]:
        from benchmarks.route import route  # counts steps by a hook that PyTorch 1.10 does not have

        route()
        return
    unknown = [name for name in arguments.cases if name not in CASES]
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    setting = Setting(choose_device(arguments.gpus), arguments.repeats)
    as_in_a_run(setting.device)
    rows = []
    for name in arguments.cases or CASES:
        found = CASES[name](setting)
        rows += found
        for row in found:
            print(f"{name}: {row.what}: {row.ours:.4f} s", flush=True)
    print(table(rows))
    if not arguments.no_report:
        print(f"report: {write(rows, setting.device, setting.repeats)}")


if __name__ == "__main__":
    main()
