"""Models of the Hugging Face hub: names as people write them, the local cache first, then the network with the user's login.

A name is `owner/name`, `owner/name@revision`, `owner/name@revision/folder`, or the address of a page.
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfUri, constants, get_cached_repo_tree, parse_hf_uri, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfUriError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from Utils.basics.errors import InputError
from Utils.basics.files import typed_command
from Utils.intake.files import PICKLES, TOKENIZER, free_name

NEWEST = "main"
SETTINGS = ("*.json", "*.txt", "*.model")
"""What is fetched of every folder of a model."""
OTHER_PARTS = ("unet/*", "vae/*", "transformer/*", "safety_checker/*", "image_encoder/*", "*non_ema*")
"""What is not fetched: other parts of a pipeline."""
VARIANTS = ("*.fp16.*", "*.bf16.*")
"""Not fetched either, where there are others."""
SINGLE_FILES = ("safetensors", "sft", "gguf")
"""Suffixes of files that hold models by themselves."""
COMMIT = re.compile(r"[0-9a-f]{40}")


# -------------------------------------------------------------------------------------------------------------- names
def hub_name(text: str) -> HfUri | None:
    """What a word names on the hub; None where it has another form.

    Without a revision only a folder that is called like a text encoder may follow the name: else it is a mistyped path.

    Raises:
        InputError: it is an address, and of no model.
    """
    address = re.match(r"(hf|https?)://|(www\.)?(huggingface\.co|hf\.co)/", text) is not None
    if not address and text.partition("/")[0] in constants.HF_URI_TYPE_PREFIXES:
        return None
    try:
        name = parse_hf_uri(text if address else f"{constants.HF_PROTOCOL}{text}", endpoint=constants.ENDPOINT)
    except HfUriError:
        if address:
            raise InputError(f"{text} is no page of a model; give one such as {constants.ENDPOINT}/owner/name.") from None
        return None
    if name.type != "model":
        raise InputError(f"{text} is a {name.type} and no model; give the page of a model.")
    if ".." in f"{name.revision}/{name.path_in_repo}":
        return None
    encoder = re.fullmatch(r"text_encoder(_\d)?", name.path_in_repo)
    return name if address or name.revision or not name.path_in_repo or encoder else None


def as_named(text: str, subfolder: str = "") -> str:
    """A model as reports call it: a path as it is, a page's address as `owner/name@revision/folder`; subfolder: further in."""
    if is_path(text):
        return str(Path(text) / subfolder) if subfolder else text
    name = hub_name(text)
    if name is None:
        return f"{text}/{subfolder}" if subfolder else text
    inside = "/".join(part for part in (name.path_in_repo, subfolder.strip("/")) if part)
    revision = name.revision or (NEWEST if inside else "")
    return written(name.id, revision, inside)


def written(repository: str, revision: str, inside: str) -> str:
    """`owner/name@revision/folder`; slashes of a branch are written as %2F, so that it ends where the folder begins."""
    if not revision.startswith("refs/"):
        revision = revision.replace("/", "%2F")
    return f"{repository}{'@' if revision else ''}{revision}{'/' if inside else ''}{inside}"


def pinned(text: str, commit: str | None) -> str:
    """A model's name with the commit that was read, so that it names the same files tomorrow; a path as it is."""
    name = None if commit is None or is_path(text) else hub_name(text)
    return text if name is None else written(name.id, commit, name.path_in_repo)


def file_and_part(text: str) -> tuple[str, str]:
    """A single file and the part of it that a word names: `model.safetensors/text_encoder_2`; the word itself where none is."""
    found = re.fullmatch(rf"(.*\.(?:{'|'.join(SINGLE_FILES)}))[/\\]([\w-]+)[/\\]?", text, re.DOTALL | re.IGNORECASE)
    return (found[1], found[2]) if found else (text, "")


def is_path(text: str) -> bool:
    """Whether something lies at this path, or is a part of a file."""
    file, part = file_and_part(text)
    try:
        return Path(text).exists() or (bool(part) and Path(file).is_file())
    except (OSError, ValueError):  # a name too long for a path
        return False


# ------------------------------------------------------------------------------------------------------------- places
def located(model: str | Path, pickles: bool = False) -> Path:
    """The folder or file that a word names, fetched from the hub where it is no path and not in the local cache.

    pickles: as in `fetched`.

    Raises:
        InputError: there is no such thing, or it cannot be fetched; one sentence with the cure.
    """
    if is_path(str(model)):
        return snapshot_of(Path(model))
    text = str(model)[:300]
    name = hub_name(text)
    if name is None:
        raise InputError(f"{text} does not exist; give a model folder or a hub id such as openai/clip-vit-large-patch14.")
    return fetched(name, pickles) if pickles else in_cache(name) or fetched(name)


def snapshot_of(folder: Path) -> Path:
    """A folder, or the snapshot in it where it is one of the hub's cache (models--owner--name)."""
    if not (folder.name.startswith("models--") and (folder / "snapshots").is_dir()):
        return folder
    newest = folder / "refs" / NEWEST
    commits = [newest.read_text(encoding="utf-8")[:40]] if newest.is_file() else []
    commits += sorted(path.name for path in (folder / "snapshots").iterdir())
    there = [one for one in commits if COMMIT.fullmatch(one) and (folder / "snapshots" / one).is_dir()]
    return folder / "snapshots" / there[0] if there else folder


def commit_of(folder: Path) -> str | None:
    """The commit of the hub that a folder is a snapshot of; None where it is none."""
    for place in (folder.absolute(), *folder.absolute().parents):
        if place.parent.name == "snapshots" and COMMIT.fullmatch(place.name):
            return place.name
    return None


def not_fetched(snapshot: Path) -> list[str]:
    """Files that the hub's list of a snapshot names and the snapshot does not hold; none where there is no such list."""
    commit, owner_and_name = commit_of(snapshot), snapshot.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    if commit is None or snapshot.name != commit:
        return []
    try:
        listed = get_cached_repo_tree(owner_and_name, revision=commit, cache_dir=snapshot.parents[2])
    except CachedRepoTreeNotFoundError:
        return []
    return sorted(file.path for file in listed if not (snapshot / file.path).exists())


def in_cache(name: HfUri) -> Path | None:
    """What a name means in the local cache; None where it is not there with weights and tokenizer."""
    try:
        place = _download(name, _wanted(name), offline=True) / name.path_in_repo
    except Exception:  # the client raises a dozen types for "not here"
        return None
    return place if place.exists() and (place.is_file() or _is_whole(place)) else None


def _is_whole(folder: Path) -> bool:
    """Whether weights and a tokenizer lie in a folder, or in the pipeline that it is or belongs to."""
    texts = [folder, *folder.glob("tokenizer*"), *folder.parent.glob("tokenizer*")]
    return _has_weights(folder, pickles=False) and any((place / name).exists() for place in texts for name in TOKENIZER)


def fetched(name: HfUri, pickles: bool = False) -> Path:
    """The folder or file that a name means, fetched.

    pickles: for those who convert them; else weights in safetensors form are fetched only.

    Raises:
        InputError: it cannot be fetched, or holds no weights in this form; one sentence with the cure.
    """
    text = written(name.id, name.revision or "", name.path_in_repo)
    try:
        place = _download(name, _wanted(name, pickles)) / name.path_in_repo
        if place.is_dir() and not _has_weights(place, pickles):  # half precision only, or names of their own
            more = [f"*{suffix}" for suffix in PICKLES] if pickles and not name.path_in_repo else []
            place = _download(name, [*_wanted(name, pickles), *more], variants=True) / name.path_in_repo
    except Exception as error:  # the client raises a dozen types for "no such model" and "no network"
        raise InputError(_refusal(text, name, error)) from error
    if not place.exists():
        raise InputError(f"{name.id} holds no {name.path_in_repo}; its files are listed on {_page(name)}/tree/{NEWEST}.")
    if not pickles and place.is_dir() and not _has_weights(place, pickles):
        target = free_name(place)
        command = typed_command("Utils/convert.py", text, target)
        raise InputError(
            f"{text} has no weights in safetensors form on the hub; convert what is there with `{command}`, "
            f"then scan {target} instead."
        )
    return place


def _has_weights(folder: Path, pickles: bool) -> bool:
    places, suffixes = (folder, *folder.glob("text_encoder*")), PICKLES if pickles else (".safetensors",)
    return any(file.suffix.lower() in suffixes for place in places for file in place.iterdir())


def _wanted(name: HfUri, pickles: bool = False) -> list[str]:
    """Patterns of the files to fetch: settings of every folder, weights of the wanted one."""
    inside = name.path_in_repo
    if inside.endswith((".safetensors", *PICKLES)):
        return [*SETTINGS, inside]
    stems = [f"{inside}/*"] if inside else ["model*", "text_encoder*/model*"]
    if not pickles:
        return [*SETTINGS, *(f"{stem}.safetensors" for stem in stems)]
    return [*SETTINGS, *(f"{stem.replace('model*', 'pytorch_model*')}.bin" for stem in stems)]


def _download(name: HfUri, wanted: list[str], offline: bool = False, variants: bool = False) -> Path:
    """The snapshot of a name's repository."""
    unwanted = [*OTHER_PARTS, *(() if variants or offline else VARIANTS)]
    revision = name.revision or NEWEST
    return Path(snapshot_download(
        name.id, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted, local_files_only=offline
    ))  # fmt: skip


def _page(name: HfUri) -> str:
    return f"{constants.ENDPOINT}/{name.id}"


def _refusal(text: str, name: HfUri, error: BaseException) -> str:
    """Why the hub's client could not fetch a model, and what to do."""
    if isinstance(error, GatedRepoError):
        return f"{name.id} is gated; accept its terms on {_page(name)}, log in with `hf auth login` and try again."
    if isinstance(error, RepositoryNotFoundError):
        return f"{name.id} is not on the hub, or is private; check its name, or log in with `hf auth login` and try again."
    if isinstance(error, RevisionNotFoundError):
        return f"{name.id} has no revision {name.revision}; give one of {_page(name)}/refs, or none for the newest."
    if isinstance(error.__cause__, OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE is set: unset it"
    elif isinstance(error, LocalEntryNotFoundError):
        why = "it cannot be reached: try again with a network"
    else:
        why = f"{type(error).__name__}: try again"
    return (
        f"{text} is no folder, not whole in the local cache, and could not be fetched from the hub ({why}, or give a folder)."
    )
