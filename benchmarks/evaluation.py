"""How long k-NN and few-shot accuracy take on given features, beside scikit-learn.

`python benchmarks/evaluation.py` makes features of 768 numbers around a centre for each of 1,000
classes. k-NN: 10,000 queries among 100,000 rows, the vote of 10, by both distances, beside
KNeighborsClassifier on the same float32 features; how many predictions differ is counted, also
from scikit-learn's on float64 features of the first 500 queries. Few-shot: least squares on 10
images of each class, three draws, scored on 10,000, beside Ridge on the same standardised features.
The wall clock and the CPU's time of each are printed and written to
benchmarks/results/evaluation.json. Threads: OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line sets it

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

from vitkit.evaluation.fewshot import BIAS, L2, few_shot
from vitkit.evaluation.knn import knn

RESULTS = Path(__file__).with_name("results") / "evaluation.json"
WIDTH, K, EXACT = 768, 10, 500


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    wall, cpu = perf_counter(), process_time()
    found = work()
    return found, {
        "seconds": round(perf_counter() - wall, 2), "cpu_seconds": round(process_time() - cpu, 2),
    }  # fmt: skip


def features(images: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, 768) float32 around the classes' centres, so far apart that about every second is told
    right, and labels, as many of each class."""
    centres = np.random.default_rng(0).normal(size=(classes, WIDTH)).astype(np.float32)
    random = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    noise = random.normal(size=(images, WIDTH)).astype(np.float32)
    return centres[labels] + 4 * noise, labels


def knn_row(metric: str, train: int, queries: int, classes: int, theirs: bool) -> dict[str, Any]:
    (x, y), (x_test, y_test) = features(train, classes, 1), features(queries, classes, 2)
    ours, ours_took = timed(lambda: knn(x, y, x_test, K, metric))
    row: dict[str, Any] = {
        "train": train, "queries": queries, "metric": metric, "k": K, "vitkit": ours_took,
        "accuracy": round(float(np.mean(ours == y_test)), 4),
    }  # fmt: skip
    if theirs:
        classifier = KNeighborsClassifier(K, metric=metric, algorithm="brute").fit(x, y)
        found, row["scikit-learn"] = timed(lambda: classifier.predict(x_test))
        row["differ"] = int(np.sum(found != ours))
        exact = KNeighborsClassifier(K, metric=metric, algorithm="brute").fit(x.astype(float), y)
        wrong = exact.predict(x_test[:EXACT].astype(float)) != ours[:EXACT]
        row[f"differ_from_float64_of_{min(EXACT, queries)}"] = int(np.sum(wrong))
    return row


def few_shot_row(queries: int, classes: int, shots: int, theirs: bool) -> dict[str, Any]:
    (x, y), (x_test, y_test) = features(20 * classes, classes, 1), features(queries, classes, 2)
    ours, ours_took = timed(lambda: few_shot(x, y, x_test, y_test, [shots], (0, 1, 2)))
    row: dict[str, Any] = {
        "classes": classes, "shots": shots, "draws": 3, "queries": queries, "vitkit": ours_took,
        "accuracy": round(ours[f"{shots}shot"], 4),
    }  # fmt: skip
    if theirs:
        row["scikit-learn, one draw"] = timed(lambda: ridge(x, y, x_test, shots))[1]
    return row


def ridge(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, shots: int) -> np.ndarray:
    chosen = np.argsort(y, kind="stable").reshape(y.max() + 1, -1)[:, :shots].ravel()
    raw, tests = x[chosen].astype(float), x_test.astype(float)
    mean, std = raw.mean(0), raw.std(0) + 1e-5
    rows, queries = (np.column_stack([(part - mean) / std, np.full(len(part), BIAS)])
                     for part in (raw, tests))  # fmt: skip
    targets = 2.0 * (y[chosen][:, None] == np.arange(y.max() + 1)) - 1
    return Ridge(alpha=L2, fit_intercept=False).fit(rows, targets).predict(queries).argmax(1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--alone", action="store_true", help="without scikit-learn")
    parser.add_argument("--json", type=Path, default=RESULTS)
    words = parser.parse_args()
    result: dict[str, Any] = {
        "date": str(date.today()), "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 1),
        "versions": {name: version(name) for name in ("torch", "numpy", "scikit-learn")},
    }  # fmt: skip
    result["few_shot"] = few_shot_row(words.queries, words.classes, words.shots, not words.alone)
    print(json.dumps(result["few_shot"]), flush=True)
    result["knn"] = []
    for metric in ("cosine", "euclidean"):
        row = knn_row(metric, words.train, words.queries, words.classes, not words.alone)
        result["knn"].append(row)
        print(json.dumps(row), flush=True)
    words.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
