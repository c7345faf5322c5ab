"""Random batches through every way of the backends, judged against float64.

Status 1 if any fails, with a line for each that repeats it. With TRITON_INTERPRET=1 set, tiny batches through Triton's
kernels instead.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings

import fastassoc
from benchmarks.fuzz import cases, ways
from benchmarks.fuzz.campaign import Limits, Tally, outcomes
from benchmarks.fuzz.verdict import Loss, judge

CHOICES = (*cases.KINDS, *cases.WAYS, *cases.SIMILARITIES, *cases.DTYPES)


def main(arguments: list[str] | None = None, loss: Loss = fastassoc.walker_visit_loss) -> int:
    """Runs the campaign, or the one batch, that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="how long, unless --cases (default: %(default)g)")
    parser.add_argument("--cases", type=int, help="how many, however long they take")
    parser.add_argument("--seed", type=int, default=0, help="of the campaign (default: %(default)s)")
    parser.add_argument("--only", metavar="KIND", choices=CHOICES, help="a kind, way, similarity or dtype")
    parser.add_argument("--case", metavar="SEED:NUMBER", type=_seed_and_number, help="one batch again")
    options = parser.parse_args(arguments)
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    # Arithmetic on the NaN of poisoned memory, and beyond masks, is not worth a warning.
    warnings.filterwarnings("ignore", category=RuntimeWarning)

    if options.case is not None:
        seed, number = options.case
        outcome = judge(cases.describe(seed, number, interpreted), loss)
        print(outcome.case)
        print(outcome.line if outcome.problems else f"error / allowed {outcome.ratio:.3g}")
        return int(bool(outcome.problems))
    for way in cases.WAYS if interpreted else cases.CPU_WAYS:
        reason = ways.missing(way)
        if reason is not None:
            print(f"left out: {way}: {reason}")
    start = time.monotonic()
    tally = Tally()
    for outcome in outcomes(Limits(options.seed, options.minutes, options.cases, options.only, interpreted), loss):
        tally.add(outcome)
        if outcome.problems:
            print(outcome.line, flush=True)
    print(f"\n{tally.table()}")
    rate = 60.0 * tally.cases / (time.monotonic() - start)
    print(f"{tally.cases} batches, {tally.failures} failures, {rate:.0f} batches a minute")
    return int(tally.failures > 0)


def _seed_and_number(text: str) -> tuple[int, int]:
    seed, _, number = text.partition(":")
    return int(seed), int(number)


if __name__ == "__main__":
    sys.exit(main())
