"""Rows and columns of a table by short names: 'pixeldefend:eps=8+feature-squeezing', 'bim:steps=20'."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from ..attacks import ATTACKS, BlindPGD, find_attack
from ..base.checks import check_eps, check_names, check_text
from ..defences.named import parse_settings
from .defences import DEFENCES, check_defence
from .results import UNDEFENDED
from .specification import ColumnSpecification, RowSpecification, TableSpecification

NONE = "none"
FLIP = "flip"  # the last part of a row that has the views of this name
PURIFICATION_EPS = {1: 32, 3: 16}  # the paper's, by channels
# by name: the kind of defence, what it is called, and settings that are not its own defaults
NAMED_DEFENCES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "pixeldefend": ("purifier", "PixelDefend", {}),
    "adaptive-pixeldefend": ("purifier", "Adaptive PixelDefend", {"adaptive": "image"}),
    "adp": ("adp", "ADP", {"sigma": 0.25}),
    "feature-squeezing": ("feature-squeezing", "Feature Squeezing", {}),
    "purifier": ("purifier", "PixelDefend", {}),
}
PROTOCOL = (  # by which purifiers are judged
    "blind-pgd",
    "bpda",
    "bpda-eot",
    "apgd-bpda",
    "full-gradient",
    "joint-score:at=purified",
    "joint-full:at=purified",
    "spsa",
)
# sets of attacks by one name: those of the paper's tables, and those of the table of attackers who know the defence
ATTACK_SETS: dict[str, tuple[str, ...]] = {
    "paper": ("rand", "fgsm", "bim", "deepfool", "cw-linf"),
    "adaptive": PROTOCOL,
}
DEFAULT_DEFENCES = (NONE, "feature-squeezing", "pixeldefend", "adaptive-pixeldefend", "adp")
DEFAULT_ATTACKS = ("fgsm", "bim", "deepfool", "blind-pgd", "bpda-eot")
BLIND = "Blind PGD"
LABELS = {
    "rand": "RAND",
    "fgsm": "FGSM",
    "bim": "BIM",
    "pgd": "PGD",
    "deepfool": "DeepFool",
    "cw-linf": "CW",
    "cw-l2": "CW (L2)",
    "autoattack": "AutoAttack",
    "blind-pgd": BLIND,
    "bpda": "BPDA",
    "bpda-eot": "BPDA+EOT",
    "spsa": "SPSA",
    "joint-score": "Joint (score)",
    "joint-full": "Joint (full)",
    "full-gradient": "Full gradient",
    "unrolled-bim": "Unrolled BIM",
    "apgd-bpda": "APGD (BPDA)",
    "random-search": "Random search",
}
KNOWS = "knows_defences"


def requested_rows(defences: Iterable[str], network: str, channels: int) -> tuple[RowSpecification, ...]:
    """A row for each of the texts: 'none', or 'NAME[:SETTING=VALUE,...]', several joined by '+' in their order.

    'flip' as the last of them stands for the views of that name (:class:`pxfast.Defended`).

    network: of the classifier, as shown. channels: of the images.
    TypeError or ValueError, which lists the known names, for others, and for the same row twice.
    """
    rows = [_row(text, network, channels) for text in check_names("defences", defences)]
    _check_once("defence", [row.name for row in rows])
    return tuple(rows)


def _row(text: str, network: str, channels: int) -> RowSpecification:
    parts = [part.strip() for part in text.split("+")]
    views = FLIP if parts[-1] == FLIP else "one"
    named = parts[:-1] if views == FLIP else parts
    chain = () if named in ([], [NONE]) else tuple(_defence(part, channels) for part in named)
    technique = " + ".join(label for label, _ in chain) or UNDEFENDED
    if views == FLIP:
        technique += ", two views"
    return RowSpecification(
        name=plain_name(" + ".join(parts)),
        network=network,
        technique=technique,
        architecture="",
        defences=tuple(defence for _, defence in chain),
        views=views,
    )


def _defence(text: str, channels: int) -> tuple[str, dict[str, Any]]:
    """What a defence is called, and its table."""
    name, _, rest = text.partition(":")
    if name not in NAMED_DEFENCES:
        known = ", ".join((NONE, *NAMED_DEFENCES, FLIP))
        raise ValueError(f"unknown defence {name!r}; known: {known}; several are joined by +")
    kind, label, settings = NAMED_DEFENCES[name]
    given = parse_settings((part for part in rest.split(",") if part), list(DEFENCES[kind].options))
    if kind == "purifier":
        settings = {"eps": PURIFICATION_EPS[channels], **settings}
    defence = {"kind": kind, **settings, **given}
    check_defence(defence)
    return ", ".join([label, *(f"{setting} {value}" for setting, value in given.items())]), defence


def requested_columns(attacks: Iterable[str]) -> tuple[ColumnSpecification, ...]:
    """The columns of clean images, of each attack, 'NAME[:OPTION=VALUE,...]' or a set's name, and of the strongest one.

    An attack on defences, such as bpda, knows those of its row; others are made on the classifier alone, unless their
    options have knows_defences=true. TypeError or ValueError, which lists the known names, for others, and for the same
    column twice.
    """
    texts = [each for text in check_names("attacks", attacks) for each in ATTACK_SETS.get(text, (text,))]
    columns = [_column(text) for text in texts]
    _check_once("attack", [column.name for column in columns])
    clean = ColumnSpecification("clean", "Clean")
    strongest = ColumnSpecification("strongest", "Strongest attack", strongest=True)
    return (clean, *columns, strongest)


def judged_columns(table: TableSpecification, names: Iterable[str] | None) -> TableSpecification:
    """A table with runs, with these attacks alone; None: all. Its clean images and strongest attack stay.

    names: of its columns, or attacks with options, 'NAME:OPTION=VALUE,...', which are made on the whole row and have no
    published numbers. ValueError for others, and where no attack is left.
    """
    if names is None:
        return table
    own = {column.name: column for column in table.columns}
    chosen = {name: own[name] if name in own else _judged(name, own) for name in check_names("columns", names)}
    attacks = [column for column in chosen.values() if column.attack is not None]
    if not attacks:
        raise ValueError(f"a table with runs needs an attack, got the columns {', '.join(chosen)} alone")
    _check_once("attack", [column.name for column in attacks])
    kept = {column.name for column in attacks}
    columns = [column for column in table.columns if column.attack is None or column.name in kept]
    place = next(i for i, column in enumerate(columns) if column.strongest)
    columns[place:place] = [column for column in attacks if column.name not in own]
    there = {column.name for column in columns}
    rows = [
        dataclasses.replace(
            row,
            published={name: values for name, values in row.published.items() if name in there},
            published_notes={name: note for name, note in row.published_notes.items() if name in there},
        )
        for row in table.rows
    ]
    return dataclasses.replace(table, columns=tuple(columns), rows=tuple(rows))


def _judged(text: str, own: Iterable[str]) -> ColumnSpecification:
    if text.partition(":")[0] not in ATTACKS:
        raise ValueError(
            f"the table has no column {text!r}; it has: {', '.join(own)}; another attack is written bpda:steps=100"
        )
    column = _column(text)
    if not find_attack(str(column.attack), **column.options).bounded:
        raise ValueError(f"{column.attack} has no eps: the protocol's attacks have one")
    return column if column.attack == BlindPGD.name else dataclasses.replace(column, knows_defences=True)


def _column(text: str) -> ColumnSpecification:
    name, _, rest = check_text("an attack", text).partition(":")
    if name not in ATTACKS:
        known = ", ".join((*ATTACKS, *ATTACK_SETS))
        raise ValueError(f"unknown attack {name!r}; known: {known}")
    known_options = [*inspect.signature(ATTACKS[name]).parameters, KNOWS]
    given = parse_settings((part for part in rest.split(",") if part), known_options)
    knows = given.pop(KNOWS, ATTACKS[name].knows_defences)
    if not isinstance(knows, bool) or (ATTACKS[name].knows_defences and not knows):
        raise ValueError(f"{KNOWS} must be true or false, and true for {name if knows is False else 'such attacks'}")
    attack = find_attack(name, **given)
    words = [f"{option} {value}" for option, value in given.items()]
    if knows and not attack.knows_defences:
        words.append("through defences")
    notes = ["on the row's defences and classifier"] if knows else []
    notes += [] if attack.bounded else ["of any size"]
    label = ", ".join([LABELS.get(name, name), *words])
    return ColumnSpecification(
        plain_name(" ".join([name, *words])), label, name, given, knows, note=", ".join(notes) or None
    )


def requested_eps(eps: int | Sequence[int]) -> tuple[int, ...]:
    """Attacks' eps in 0..255, one or several, each once, in order. TypeError or ValueError for others."""
    found = sorted(map(check_eps, eps)) if isinstance(eps, (list, tuple, range)) else [check_eps(eps)]  # type: ignore[arg-type]
    if not found:
        raise ValueError("eps must be an integer in 0..255, or several, got none")
    _check_once("eps", [str(each) for each in found])
    return tuple(found)


def plain_name(text: str) -> str:
    """A text as a name of rows and columns: letters, digits, spaces and any of _.+- alone."""
    plain = "".join(letter if letter.isalnum() or letter in "_.+- " else " " for letter in text)
    return " ".join(plain.split())[:100]


def _check_once(what: str, names: Sequence[str]) -> None:
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if twice:
        raise ValueError(f"each {what} must be there once, got {twice[0]!r} twice")
