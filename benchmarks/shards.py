"""What images in tar shards cost: the index of a million, and a reader far away.

    python benchmarks/shards.py index --members 1000000
    python benchmarks/shards.py latency --milliseconds 50

``index`` writes tars of tiny members into a temporary folder and opens a data set of them twice,
the second time by the index that was kept, each in a process of its own. ``latency`` serves painted
streets by HTTP with range requests, each answered after a pause, and loads training batches with
some numbers of loader processes; the first row is of the same images as files. They are JPEG, crops
are square and of their height, and batches hold 4 + 4 images; all else is the recipe ``default``.
Labelled images are files in each row.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import resource
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

import yaml
from PIL import Image

from u2pl import make_config
from u2pl.bench.inputs import as_jpeg, paint
from u2pl.data.loaders import training_batches
from u2pl.data.sources import load_dataset, split_hash

SHARDS = 100
"""Of a million members."""


def main() -> None:
    """Run one of the two measurements and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    index = parts.add_parser("index")
    index.add_argument("--members", type=int, default=1_000_000)
    latency = parts.add_parser("latency")
    latency.add_argument("--milliseconds", type=float, default=50)
    latency.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4, 8, 16])
    latency.add_argument("--steps", type=int, default=24)
    latency.add_argument("--size", type=int, nargs=2, default=[512, 1024], help="height, width")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        if given.part == "index":
            measure_index(Path(place), given.members)
        else:
            sources = given.milliseconds, (given.size[0], given.size[1])
            measure_latency(Path(place), *sources, given.workers, given.steps)


def measure_index(folder: Path, members: int) -> None:
    """Print seconds of computing and memory of opening a data set, without and with its index."""
    write_tiny_members(folder, members)
    for name, images in (("labeled", "images"), ("val", "val")):
        for kind in (images, f"{name}-masks"):
            (folder / kind).mkdir()
            Image.new("L", (32, 32)).save(folder / kind / "a.png")
    tree = {
        "classes": ["a", "b"],
        "labeled": {"images": "images", "masks": "labeled-masks"},
        "val": {"images": "val", "masks": "val-masks"},
        "unlabeled": {"shards": "pool-*.tar"},
    }
    (folder / "dataset.yaml").write_text(yaml.safe_dump(tree))
    print("| opened | seconds of computing | MB added | hash of the names, s | a draw, µs |")
    print("|---|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    for opened in ("without an index", "with it"):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_open, args=(folder, sender))
        process.start()
        sender.close()  # so that its end is noticed, should it fail
        row = " | ".join(f"{value:.3g}" for value in receiver.recv())
        process.join()
        print(f"| {opened} | {row} |")


def write_tiny_members(folder: Path, members: int) -> None:
    """Write tars whose members have the names and headers of images, and a few bytes each."""
    per_shard = -(-members // SHARDS)
    for number in range(SHARDS):
        with tarfile.open(
            folder / f"pool-{number:03}.tar", "w", format=tarfile.USTAR_FORMAT
        ) as tar:
            for place in range(per_shard):
                info = tarfile.TarInfo(f"{number:03}/{place:08}.jpg")
                info.size = 9
                tar.addfile(info, io.BytesIO(b"9 bytes  "))


def _open(folder: Path, sender: Connection) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    dataset = load_dataset(folder)
    seconds = time.process_time() - started
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    started = time.process_time()
    split_hash(dataset.unlabeled)
    hashing = time.process_time() - started
    count, started = len(dataset.unlabeled), time.process_time()
    for number in range(10_000):
        dataset.unlabeled[number * 7919 % count]
    sender.send((seconds, added, hashing, (time.process_time() - started) * 100))


class _Slow(SimpleHTTPRequestHandler):
    """Answers range requests for files, each after a pause."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which would add 40 ms of its own

    def __init__(self, *arguments: object, pause: float, **keywords: object) -> None:
        self.pause = pause
        super().__init__(*arguments, **keywords)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        time.sleep(self.pause)
        path = Path(self.translate_path(self.path))
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        with path.open("rb") as file:
            file.seek(int(first))
            content = file.read(int(last) - int(first) + 1)
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        total = path.stat().st_size
        self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def slow_server(folder: Path, pause: float) -> Iterator[str]:
    """Serve a folder from a process of its own; give its address."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(folder, pause, sender))
    process.start()
    sender.close()
    try:
        yield f"http://127.0.0.1:{receiver.recv()}"
    finally:
        process.terminate()
        process.join()


def _serve(folder: Path, pause: float, sender: Connection) -> None:
    handler = partial(_Slow, directory=str(folder), pause=pause)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        sender.send(server.server_port)
        server.serve_forever()


def measure_latency(
    folder: Path, milliseconds: float, size: tuple[int, int], workers: list[int], steps: int
) -> None:
    """Print images a second of files, of local shards, and of shards behind a slow server."""
    files = as_jpeg(paint(folder / "png", size=size), folder / "jpeg")
    tree = yaml.safe_load(files.read_text())
    with tarfile.open(files.parent / "pool-000.tar", "w") as tar:
        tar.add(files.parent / tree["unlabeled"]["images"], "pool")
    with slow_server(files.parent, milliseconds / 1e3) as address:
        sources = {"files": files}
        for name, shards in (
            ("local shards", "pool-000.tar"),
            (f"http, {milliseconds:g} ms", f"{address}/pool-000.tar"),
        ):
            sources[name] = files.with_name(f"{name.split()[0].strip(',')}.yaml")
            sources[name].write_text(yaml.safe_dump(tree | {"unlabeled": {"shards": shards}}))
        print(f"| images a second | {' | '.join(f'{count} workers' for count in workers)} |")
        print("|---|" + "---|" * len(workers))
        for name, path in sources.items():
            rates = [_rate(path, size[0], count, steps) for count in workers]
            print(f"| {name} | {' | '.join(f'{rate:.1f}' for rate in rates)} |", flush=True)


def _rate(path: Path, crop: int, workers: int, steps: int) -> float:
    """Return images a second, labelled and unlabelled, after the workers have begun."""
    dataset = load_dataset(path)
    settings = make_config(
        "default",
        overrides={
            "data.num_workers": workers,
            "data.crop": [crop, crop],
            "data.batch_labeled": 4,
            "data.batch_unlabeled": 4,
        },
    ).data
    warm_up = 2 * workers + 1
    batches = training_batches(
        dataset, settings, seed=0, start_step=0, stop_step=steps + warm_up, with_unlabeled=True
    )
    for _ in range(warm_up):
        next(batches)
    started = time.perf_counter()
    for _ in batches:
        pass
    return 8 * steps / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
