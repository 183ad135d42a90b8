"""Run the demo several times with different seeds, as a newcomer would, and say how often it is solved.

    python -m benchmarks.demo --runs 10

Each run is the real command in a process of its own, on a fresh copy of the repository and the ticket. It needs the
weights; the first run fetches them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time


def run_once(seed: int) -> dict[str, object]:
    """One `darkfactory demo --fresh --seed N --json`: exit code, decision, rounds, calls and wall seconds."""
    started = time.monotonic()
    command = [sys.executable, "-m", "deployments", "demo", "--fresh", "--seed", str(seed), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    outcome = json.loads(done.stdout) if done.stdout.strip() else {}
    return {
        "seed": seed,
        "exit": done.returncode,
        "decision": outcome.get("decision", "-"),
        "rounds": outcome.get("rounds", 0),
        "calls": outcome.get("usage", {}).get("calls", 0),
        "seconds": round(time.monotonic() - started),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=1)
    arguments = parser.parse_args()
    rows = []
    print("| seed | exit | decision | rounds | calls | seconds |\n|---|---|---|---|---|---|")
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.runs):
        row = run_once(seed)
        rows.append(row)
        print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
    print(f"\naccepted: {sum(row['decision'] == 'ACCEPT' for row in rows)} of {len(rows)}")


if __name__ == "__main__":
    main()
