"""The referee: any purifier under one protocol of attacks that know it; several runs, budgets and sanity checks."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks import APGDBPDA, Attack, BlindPGD, RandomSearch, find_attack
from ..attacks.attack import fix_batches
from ..attacks.resumable import hidden_networks, library_versions
from ..base.checks import check_count, check_eps, check_flag, check_instance, check_seed, check_text
from ..base.files import claimed, made_folder, whole_file
from ..base.progress import Progress, progress_of
from ..base.streams import note
from ..classifiers.inspection import check_classifier, check_module
from ..defences.defended import Defended
from ..pixelcnn.fingerprint import model_fingerprint
from ..pixelcnn.network import PixelCNN
from ..tensors.batches import FIXED_BATCH
from . import defences as kinds
from .given import Dataset, function_key, labelled_images, output_folder, place_of, renewed_report
from .networks import ModelFiles, Models
from .pipeline import attack_code
from .preparation import Settings, density_paths, make_context
from .purifier_check import check_purifier
from .request import requested_columns, requested_rows
from .results import NAME, Cell, Column, Row, Table, table_path, write_table
from .run import machine
from .sanity import Check, compare, none_left
from .specification import ColumnSpecification
from .store import Entry, Store, digest
from .verdict import Score, Verdict, votes_right

RUNS = 10
BLOCK = 256  # that of the attacks on defences: images that are done leave it
LARGEST = 255  # an eps that bounds nothing
FEWER = 10  # times as few steps, for the check that more steps never help a defence
CHECKED = 3  # attacks that are made for the checks alone
CHECK_STEPS = 100  # of random search, and of APGD without a bound
PROTOCOL = (
    "blind-pgd",
    "bpda",
    "bpda-eot",
    "apgd-bpda",
    "full-gradient",
    "joint-score:at=purified",
    "joint-full:at=purified",
    "spsa",
)
STATIC = ("blind-pgd", "bpda", "apgd-bpda")  # those that have a meaning without a purifier
TRANSFER = "Transfer, undefended"


def referee(
    classifier: nn.Module,
    purifier: nn.Module | str = "pixeldefend",
    dataset: Dataset = "cifar10",
    *,
    out: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    attacks: Iterable[str] | None = None,
    surrogates: Mapping[str, nn.Module] | None = None,
    eps: int = 8,
    images: int = 64,
    check_images: int = 64,
    runs: int = RUNS,
    name: str | None = None,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    batch_size: int = BLOCK,
    seed: int = 0,
    report: bool = True,
    progress: bool = True,
) -> Verdict:
    """Judge a purifier: what is left of a classifier's accuracy behind it, under the strongest attack of every image.

    classifier: any module in eval mode that takes floating images (N, C, H, W) in [0, 1] and gives logits
    (N, classes). purifier: any module of the purifier protocol (:mod:`pxfast.defences.protocol`), or defences by name
    as :func:`pxfast.benchmark` takes them, such as 'pixeldefend:eps=16' or 'adp'. It is tried first. dataset, root,
    images: as in :func:`pxfast.benchmark`.
    attacks: as there; None: blind PGD (transfer from the undefended classifier), BPDA, BPDA + EOT, APGD through BPDA,
    full gradient, both joint attacks and SPSA, without those that the purifier does not allow. surrogates: other
    classifiers by name, such as an adversarially trained one, whose adversarial images are tried as well. eps: in
    0..255. runs: how often a random defence is evaluated; another one is evaluated once.
    check_images: how many of the images the sanity checks are made on, the first ones. name: of the purifier, as shown.
    batch_size: images attacked and kept at a time. seed: of all random numbers. The rest is as in
    :func:`pxfast.benchmark`.

    ``out`` keeps every finished block, so that a killed run goes on; it gets a table of the report, and the verdict in
    ``out``/verdicts. Raises TypeError or ValueError for bad input and for a classifier or purifier that breaks its
    contract, FileNotFoundError for data that are not there, BlockingIOError where another process does the same.
    """
    for what, value in (("report", report), ("progress", progress)):
        check_flag(what, value)
    check_module(classifier)
    if not isinstance(purifier, nn.Module):
        check_text("purifier", purifier)
    place, folder = place_of(classifier, device), output_folder(out)
    bound, many, limit = check_eps(eps), check_count("runs", runs, 1), check_count("check_images", check_images, 1)
    shard, count = check_count("batch_size", batch_size, 1), check_count("images", images, 1)
    seed = check_seed(seed)
    columns = [each for each in requested_columns(PROTOCOL if attacks is None else attacks) if each.attack is not None]
    data = labelled_images(dataset, root, count)
    settings = Settings(
        images=count, train=False, device=str(place), engine=engine, precision=precision, threads=threads, shard=shard
    )
    title, parts = _parts(purifier, tuple(data.images.shape[1:]), place, settings, name)
    others = {check_text("surrogates", key): check_instance(key, value, nn.Module) for key, value in
              (surrogates or {}).items()}  # fmt: skip
    note(f"checking {title} on {min(len(data.images), FIXED_BATCH)} images", quiet=not progress)
    first = data.images[:FIXED_BATCH]
    for network in (classifier, *others.values()):
        check_classifier(network, first, data.labels[:FIXED_BATCH], classes=data.classes)
    for part in parts:
        check_purifier(part, first)
    store = Store(folder / "store")
    store.remove_leftovers()
    judge = _Judge(store, data.images, data.labels, bound, seed, many, shard)
    defended = judge.target(Defended(classifier, parts, seed=seed))
    path = table_path(folder, f"referee-{data.name}-{title}"[:85].rstrip() + f"-{defended.key[:8]}")
    with made_folder(path.parent), claimed(path):
        allowed, absent = _allowed(columns, defended.module)
        static = judge.target(Defended(classifier, [nn.Identity()], seed=seed))
        beside = [each for each in columns if each.attack in STATIC]
        work = len(data.images) * (len(allowed) + len(others) + len(beside)) + min(limit, len(data.images)) * CHECKED
        with progress_of(work, shown=progress) as bar:
            judge.bar = bar
            scores, found = judge.row(defended, allowed, {key: judge.surrogate(each) for key, each in others.items()})
            alone, _ = judge.row(static, beside, {})
            checks = judge.checks(defended, allowed, found, min(limit, len(data.images)))
        kept = {
            "data": digest(data.images, data.labels),
            "attacks": {label_of(each): judge.described(attack_of(each)) for each in allowed}
            | {f"Transfer, {key}": judge.described(BlindPGD()) for key in others},
            "left out": absent,
            "seed": seed,
            "runs": judge.runs(defended),
            "sanity checks": [dataclasses.asdict(check) for check in checks],
            "device": str(place),
            "libraries": library_versions(),
        }
        kind = type(classifier).__name__
        verdict = Verdict(
            kind, title, data.title, bound, judge.runs(defended), len(data.images), scores, alone, checks, kept,
            folder, None,
        )  # fmt: skip
        write_table(folder, _table(verdict, path.stem, data.name, defended.key, static.key))
    if report:
        verdict = dataclasses.replace(verdict, report=renewed_report(folder))
    written = folder / "verdicts" / f"{path.stem}.json"
    written.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(written) as temporary:
        temporary.write_text(verdict.to_json() + "\n", encoding="utf-8")
    return verdict


def _parts(
    purifier: nn.Module | str, shape: tuple[int, ...], place: torch.device, settings: Settings, name: str | None
) -> tuple[str, list[nn.Module]]:
    """What the purifier is called, and its modules in eval mode. ValueError for an unknown one, or a name of others."""
    if isinstance(purifier, nn.Module):
        title, parts = type(purifier).__name__, [purifier]
    else:
        (row,) = requested_rows((purifier,), "classifier", shape[0])
        if not row.defences:
            raise ValueError("expected a purifier, got 'none': the classifier alone stands beside every purifier")
        path = None
        if any(each["kind"] == "purifier" for each in row.defences):
            from ..pixelcnn.shipped import model_path

            path = model_path(None, shape)
        context = make_context(path, shape, str(place), settings)
        models = Models(ModelFiles({}, density_paths(path, context)), str(place), settings.threads)
        title = "".join(letter if letter.isalnum() or letter in "_.+- " else " " for letter in row.technique)
        parts = [kinds.build(kinds.describe(each, context), models) for each in row.defences]
    title = title if name is None else check_text("name", name)
    if not NAME.fullmatch(title):
        raise ValueError(f"name must be of letters, digits, spaces and any of _.+- alone, at most 100, got {title!r}")
    return title, parts


def _allowed(columns: list[ColumnSpecification], module: Defended) -> tuple[list[ColumnSpecification], dict[str, str]]:
    """The attacks that the purifier allows, and why the others are left out, by name."""
    allowed, absent = [], {}
    for column in columns:
        attack = attack_of(column)
        attack.check_installed()
        try:
            attack.check_defences(list(module.defences))
        except ValueError as error:
            absent[column.name] = str(error)
            continue
        if not attack.bounded:
            absent[column.name] = f"{attack.name} has no eps"
        elif attack.name == "bpda-eot" and not module.runs and any(each.attack == "bpda" for each in columns):
            absent[column.name] = "the purifier is not random: this is bpda"
        else:
            allowed.append(column)
    if not allowed:
        raise ValueError(f"no attack is left: {'; '.join(absent.values())}")
    return allowed, absent


@dataclasses.dataclass(frozen=True)
class _Target:
    """A module that is attacked, in memory, and the key of what it computes."""

    module: Defended
    key: str


def label_of(column: ColumnSpecification) -> str:
    """An attack as the verdict calls it."""
    return TRANSFER if column.attack == BlindPGD.name else column.label


def attack_of(column: ColumnSpecification) -> Attack:
    """The attack of a column that has one."""
    return find_attack(str(column.attack), **column.options)


Predicted = dict[str, Tensor]  # by attack: int64 (runs, N)


class _Judge:
    """Makes attacks and evaluates them, block by block, each block from the store where it is there."""

    def __init__(
        self, store: Store, images: Tensor, labels: Tensor, eps: int, seed: int, runs: int, shard: int
    ) -> None:
        self.store, self.images, self.labels = store, images, labels
        self.eps, self.seed, self.most_runs, self.shard = eps, seed, runs, shard
        self.bar: Progress | None = None

    def target(self, module: Defended) -> _Target:
        """The module, with its key: of its values, of the networks it hides, and of its logits of the first images."""
        device = next((each.device for each in module.parameters()), torch.device("cpu"))
        first = self.images[:FIXED_BATCH]
        with torch.no_grad():
            logits = fix_batches(module, FIXED_BATCH)(first.to(device).float() / 255.0)
        key = function_key(module, first, logits, self.store)
        hidden = [
            model_fingerprint(each) if isinstance(each, PixelCNN) else digest(*each.state_dict().values())
            for each in hidden_networks(module, tuple(first.shape[1:]))
        ]
        return _Target(module, "-".join([key, *hidden]))

    def surrogate(self, network: nn.Module) -> _Target:
        """Another classifier, whose own adversarial images are to be tried."""
        return self.target(Defended(network, [nn.Identity()]))

    def runs(self, target: _Target) -> int:
        """How often the target is evaluated."""
        return self.most_runs if target.module.runs else 1

    @staticmethod
    def described(attack: Attack) -> dict[str, Any]:
        """What the result of an attack depends on, JSON-able."""
        return {"attack": attack.name, "options": attack.options, "code": attack_code(attack.name),
                "source": attack.source}  # fmt: skip

    def row(
        self, target: _Target, columns: list[ColumnSpecification], surrogates: Mapping[str, _Target]
    ) -> tuple[tuple[Score, ...], Predicted]:
        """A target's scores, clean images first and the strongest attack last; and what it predicts under each."""
        found: Predicted = {"Clean": self.predicted(target, self.images)}
        costs: dict[str, tuple[dict[str, Tensor], float]] = {}
        jobs = [(label_of(column), target, attack_of(column)) for column in columns]
        jobs += [(f"Transfer, {name}", other, BlindPGD()) for name, other in surrogates.items()]
        for label, attacked, attack in jobs:
            moved, cost, seconds = self.attacked(attacked, attack, self.eps, len(self.images))
            found[label], costs[label] = self.predicted(target, moved), (cost, seconds)
        scores = [self._score(label, [each], *costs.get(label, ({}, None))) for label, each in found.items()]
        return (*scores, self._score("Strongest of every image", list(found.values()), {}, None)), found

    def _score(self, label: str, each: list[Tensor], cost: dict[str, Tensor], seconds: float | None) -> Score:
        right = torch.stack([predicted == self.labels for predicted in each])
        votes = torch.stack([votes_right(predicted, self.labels) for predicted in each]).all(dim=0)
        spent = {name: (round(float(value.double().mean()), 2), int(value.max())) for name, value in cost.items()}
        return Score(
            label,
            len(self.images),
            round(float(right.double().mean(dim=1).amin(dim=0).mean()), 6),
            int(right.all(dim=1).all(dim=0).sum()),
            int(votes.sum()),
            spent.get("queries"),
            spent.get("gradients"),
            None if seconds is None else round(seconds, 3),
        )

    def attacked(
        self, target: _Target, attack: Attack, eps: int, count: int
    ) -> tuple[Tensor, dict[str, Tensor], float]:
        """The first ``count`` images, attacked, uint8; what each cost; and the seconds of that, in whichever run."""
        entries = []
        for start in range(0, count, self.shard):
            chosen = slice(start, min(start + self.shard, count))
            images, labels = self.images[chosen], self.labels[chosen]
            recipe = {
                **self.described(attack),
                "stage": "referee attack",
                "target": target.key,
                "eps": eps,
                "seed": self.seed,
                "inputs": digest(images, labels),
                "libraries": library_versions(),
            }
            entry = self.store.read(recipe)
            if entry is None:
                device = next((each.device for each in target.module.parameters()), torch.device("cpu"))
                result = attack.run(target.module, images.to(device), labels, eps, seed=self.seed)
                values = {"images": result.images, "queries": result.queries, "gradients": result.gradients}
                entry = Entry({name: value for name, value in values.items() if value is not None}, result.seconds)
                self.store.write(recipe, entry)
            if self.bar is not None:
                self.bar.advance(len(images))
            entries.append({name: value.cpu() for name, value in entry.tensors.items()} | {"": torch.tensor(
                entry.seconds, dtype=torch.float64)})  # fmt: skip
        names = [name for name in entries[0] if name]
        joined = {name: torch.cat([each[name] for each in entries]) for name in names}
        return joined.pop("images"), joined, sum(float(each[""]) for each in entries)

    @torch.no_grad()
    def predicted(self, target: _Target, images: Tensor) -> Tensor:
        """The labels of uint8 images in every run: int64 (runs, N). Run i has the seed ``seed`` + i."""
        device = next((each.device for each in target.module.parameters()), torch.device("cpu"))
        blocks = []
        for block in images.split(self.shard):
            recipe = {
                "stage": "referee prediction",
                "target": target.key,
                "seed": self.seed,
                "runs": self.runs(target),
                "inputs": digest(block),
                "libraries": library_versions(),
            }
            entry = self.store.read(recipe)
            if entry is None:
                started, module, each = time.perf_counter(), target.module, []
                for run in range(self.runs(target)):
                    again = Defended(module.classifier, module.defences, seed=self.seed + run)
                    each.append(fix_batches(again, FIXED_BATCH)(block.to(device).float() / 255.0).argmax(1).cpu())
                entry = Entry({"labels": torch.stack(each)}, time.perf_counter() - started)
                self.store.write(recipe, entry)
            blocks.append(entry.tensors["labels"])
        return torch.cat(blocks, dim=1)

    def checks(
        self, target: _Target, columns: list[ColumnSpecification], found: Predicted, count: int
    ) -> tuple[Check, ...]:
        """The sanity checks, on the first ``count`` images."""
        labels = self.labels[:count]
        left = {label: votes_right(each[:, :count], labels) for label, each in found.items()}
        attacks = {label_of(column): attack_of(column) for column in columns}
        white = {
            label: attack
            for label, attack in attacks.items()
            if attack.knows_defences and attack.needs_gradient and label in left
        }
        checks = []

        def right_under(attack: Attack, eps: int) -> Tensor:
            moved, _, _ = self.attacked(target, attack, eps, count)
            return votes_right(self.predicted(target, moved), labels)

        name = "more steps never help the defence"
        stepping = next((label for label, attack in white.items() if attack.options.get("steps", 0) > 1), None)
        if stepping is None:
            checks.append(Check(name, "inconclusive", "no attack with gradients was chosen"))
        else:
            attack = white[stepping]
            fewer = max(1, attack.options["steps"] // FEWER)
            shorter = find_attack(attack.name, **{**attack.options, "steps": fewer})
            checks.append(compare(
                name,
                (f"{stepping} of {fewer} steps", right_under(shorter, self.eps)),
                (f"{attack.options['steps']} steps", left[stepping]),
                    left["Clean"],
            ))  # fmt: skip
        unbounded = APGDBPDA(steps=CHECK_STEPS, restarts=1)
        checks.append(none_left("a large eps reaches 0 %", f"APGD, eps {LARGEST}", right_under(unbounded, LARGEST)))
        if white:
            gradients = torch.stack([left[label] for label in white]).all(dim=0) & left["Clean"]
            all_of_them = ("the attacks with gradients", gradients)
            searched = right_under(RandomSearch(steps=CHECK_STEPS), self.eps)
            checks.append(
                compare(
                    "random search does not beat gradients", ("random search", searched), all_of_them, left["Clean"]
                )
            )
            black = [label for label in left if label not in white and label != "Clean"]
            checks += [
                compare(f"black-box does not beat white-box: {label}", (label, left[label]), all_of_them, left["Clean"])
                for label in black
            ]
        return tuple(checks)


def _table(verdict: Verdict, name: str, dataset: str, defended: str, static: str) -> Table:
    """The verdict as a table of the report: majorities, with the averages and worst cases in the notes."""
    failed = [check.name for check in verdict.checks if check.outcome == "failed"]
    technique = verdict.purifier + (f" (a sanity check failed: {'; '.join(failed)})" if failed else "")
    names = {score.attack: f"{number:02d}" for number, score in enumerate(verdict.defended[:-1])}
    attacks = {
        names[label]: {**settings, "knows the defences": find_attack(settings["attack"]).knows_defences}
        for label, settings in verdict.settings["attacks"].items()
    }
    cells = []
    for row, scores in (("defended", verdict.defended), ("static", verdict.static)):
        for score in scores:
            notes = f"average {100 * score.average:.1f} %, right in every run {100 * score.worst / score.images:.1f} %"
            bound = None if score.attack == "Clean" else verdict.eps
            column = names.get(score.attack, "strongest")
            cells.append(
                Cell.counted(
                    row,
                    column,
                    bound,
                    score.majority,
                    score.images,
                    seconds=score.seconds,
                    notes=None if column == "strongest" else notes,
                )
            )
    return Table(
        name=name,
        title=f"{verdict.dataset}: {verdict.purifier} before the referee",
        caption=f"Accuracy in % by the majority of {verdict.runs} runs, on {verdict.images} images, eps {verdict.eps}.",
        dataset=dataset,
        images=verdict.images,
        source={},
        columns=[*(Column(key, label) for label, key in names.items()), Column("strongest", "Strongest attack")],
        rows=[Row("defended", verdict.classifier, technique), Row("static", verdict.classifier, "No defence")],
        cells=cells,
        models=[
            {"role": "defended classifier", "name": verdict.classifier, "sha256": defended, "rows": ["defended"]},
            {"role": "classifier", "name": verdict.classifier, "sha256": static, "rows": ["static"]},
        ],
        settings={**verdict.settings, "attacks": attacks},
        machine=machine(),
        rates=[
            {"what": score.attack, "images_per_second": score.images / score.seconds, "images": score.images}
            for score in verdict.defended
            if score.seconds
        ],
        finished=True,
    )
