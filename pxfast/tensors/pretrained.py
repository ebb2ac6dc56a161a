"""Networks as folders, in the form of the Hugging Face Hub: weights, configuration and a model card.

The weights' file is the one that pxfast writes elsewhere, and passes the same checks; nothing is ever unpickled. Only
what speaks to the Hub needs huggingface_hub (the extra ``hub``), which is not imported before.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from torch import nn

from ..base.checks import check_flag, check_path, check_text, notes_json
from ..base.extras import require
from ..base.files import whole_file
from ..base.reading import parse_json, read_text
from ..base.records import shown

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
UNNAMED = "organisation/name"  # in a card, as long as nobody knows better
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)  # 'organisation/name'

Network = TypeVar("Network", bound="Pretrained")


class Pretrained(nn.Module):
    """A network that is saved to a folder, loaded from one, and shared on the Hugging Face Hub.

    notes: what its file says of it besides the weights, such as how it was trained; of no use to the network itself.
    """

    notes: Mapping[str, Any] = MappingProxyType({})

    def write_file(self, path: str | os.PathLike[str], *, notes: Mapping[str, Any]) -> None:
        """Write the network's own file, in safetensors."""
        raise NotImplementedError

    @classmethod
    def read_file(cls: type[Network], path: str | os.PathLike[str]) -> Network:
        """The network of such a file, with its notes. ValueError or FileNotFoundError for what is none."""
        raise NotImplementedError

    def described(self) -> dict[str, Any]:
        """What config.json says: the file's format and the configuration, JSON-able."""
        raise NotImplementedError

    def model_card(self, notes: Mapping[str, Any], name: str = UNNAMED) -> str:
        """The text of README.md, with the Hub's metadata at its head. name: of the repository on the Hub."""
        raise NotImplementedError

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        notes: Mapping[str, Any] | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **settings: Any,
    ) -> str | None:
        """Write the network to a folder: ``model.safetensors``, ``config.json`` and a model card, ``README.md``.

        folder: made where it is missing. The first two files are replaced, each whole or not at all; a card that is
        there is kept. notes: JSON-able facts for the file and the card; None: those of the file that the network was
        loaded from. The card knows ``dataset``, ``license``, ``test_bits_per_dim``, ``test_images`` and what
        ``pxfast train`` notes.

        push_to_hub: also upload it, as :meth:`push_to_hub` does with ``repo_id`` (None: the folder's name) and
        ``settings``; the result is then the commit's address. TypeError or ValueError for other arguments,
        NotADirectoryError where ``folder`` is a file, ImportError without the extra ``hub`` where it is needed.
        """
        target, found = check_path("folder", folder), self._notes(notes)
        if check_flag("push_to_hub", push_to_hub):
            _hub_form()
        elif repo_id is not None or settings:
            unused = ["repo_id"] if repo_id is not None else sorted(settings)
            raise TypeError(f"{', '.join(unused)}: only for push_to_hub=True")
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(f"{target} is a file, expected a folder")
        write_folder(self, target, found)
        if not push_to_hub:
            return None
        return self.push_to_hub(target.absolute().name if repo_id is None else repo_id, notes=found, **settings)

    @classmethod
    def from_pretrained(
        cls: type[Network],
        name_or_folder: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Network:
        """The network that :meth:`save_pretrained` wrote, in eval mode, fp32, on the CPU.

        name_or_folder: a folder, which needs no network and no extra; or 'organisation/name' of the Hugging Face Hub,
        from which the weights and the configuration are downloaded into its cache. revision, cache_dir, token,
        force_download, local_files_only: of the download, as huggingface_hub takes them.

        Raises FileNotFoundError for a folder that lacks one of the files, ValueError for files that are damaged,
        foreign or do not fit each other, and for what is neither a folder nor such a name; ImportError for a name
        without the extra ``hub``, and what huggingface_hub raises. Nothing is unpickled.
        """
        check_path("name_or_folder", name_or_folder)
        download = {
            "force_download": check_flag("force_download", force_download),
            "local_files_only": check_flag("local_files_only", local_files_only),
        }
        name = os.fspath(name_or_folder)
        if os.path.isdir(name):
            return read_folder(cls, Path(name) / WEIGHTS, Path(name) / CONFIG)
        if not isinstance(name_or_folder, str) or not HUB_NAME.fullmatch(name):
            raise ValueError(
                f"name_or_folder must be a folder that exists, or 'organisation/name' of the Hub, got {shown(name)}"
            )
        hub = require("huggingface_hub", "hub")
        weights, config = (
            hub.hf_hub_download(name, file, revision=revision, cache_dir=cache_dir, token=token, **download)
            for file in (WEIGHTS, CONFIG)
        )
        return read_folder(cls, Path(weights), Path(config))

    def push_to_hub(self, repo_id: str, *, notes: Mapping[str, Any] | None = None, **settings: Any) -> str:
        """Upload what :meth:`save_pretrained` writes to the Hugging Face Hub, in one commit; returns its address.

        repo_id: 'organisation/name'; made where it is missing. notes: as :meth:`save_pretrained` takes them. settings:
        those of huggingface_hub's ``ModelHubMixin.push_to_hub``: ``commit_message``, ``private``, ``token``,
        ``branch``, ``create_pr`` and so on. ImportError without the extra ``hub``, before anything is done; TypeError
        or ValueError for other arguments, and what huggingface_hub raises.
        """
        check_text("repo_id", repo_id)
        form = _hub_form()
        address: str = form(self, self._notes(notes), repo_id).push_to_hub(repo_id, **settings)
        return address

    def _notes(self, notes: Mapping[str, Any] | None) -> dict[str, Any]:
        found = self.notes if notes is None else notes
        found = dict(found) if isinstance(found, Mapping) else found
        notes_json(found)  # its check
        return found


def write_folder(network: Pretrained, folder: Path, notes: Mapping[str, Any], name: str = UNNAMED) -> None:
    """The files of :meth:`Pretrained.save_pretrained`. name: of the repository on the Hub."""
    card = network.model_card(notes, name)
    folder.mkdir(parents=True, exist_ok=True)
    network.write_file(folder / WEIGHTS, notes=notes)
    with whole_file(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(network.described(), indent=2) + "\n", encoding="utf-8")
    if not (folder / CARD).exists():
        with whole_file(folder / CARD) as temporary:
            temporary.write_text(card, encoding="utf-8")


def read_folder(kind: type[Network], weights: Path, config: Path) -> Network:
    """The network of these two files. ValueError where they are not of the same network."""
    said = parse_json(read_text(config), str(config))
    network = kind.read_file(weights)
    if said != json.loads(json.dumps(network.described())):
        raise ValueError(f"{config} is not the configuration in {weights}")
    return network


@functools.cache
def _hub_form() -> Any:
    """A subclass of huggingface_hub's ModelHubMixin that holds a network. ImportError names the missing extra."""
    hub = require("huggingface_hub", "hub")

    class HubForm(hub.ModelHubMixin, library_name="pxfast"):  # type: ignore[misc, name-defined, call-arg]
        def __init__(self, network: Pretrained, notes: dict[str, Any], name: str) -> None:
            self.network, self.notes, self.name = network, notes, name

        def _save_pretrained(self, save_directory: Path) -> None:
            write_folder(self.network, save_directory, self.notes, self.name)

    return HubForm
