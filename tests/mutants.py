"""Seeded damage and tricks for model folders, by kind: the number of a mutant is all that is needed to make it again.

Contents
    bytes       changed, removed, doubled; JSON values in each other's place; safetensors headers that lie
    config      keys that transformers' text configs know, and keys of other versions, with odd values, at every level
    tokenizer   steps of the tokenizers library from a grammar, well-formed and ill-formed; keys of tokenizer_config.json
    index       shards and indexes: wrong maps, doubled tensors, missing shards, several indexes
    beside      twenty kinds of further files, some of which would run code in a loader that opens them
    pipelines   odd entries of model_index.json, components under odd names, an encoder beside them
"""

import inspect
import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from families import KINDS as FAMILY_KINDS
from families import letters
from safetensors.torch import load_file, save_file
from test_loading import WEIGHTS, Bomb, as_pipeline
from transformers import CLIPConfig, CLIPModel, CLIPTextModel

from Utils.intake.config import MUTE, ONE_VALUE
from Utils.intake.families import FAMILIES
from Utils.intake.folders import PIPELINE_ENCODERS

CANARY = "canary"
"""A file that is touched when something of a stranger is executed; it lies beside the model's folder."""
ODD = [
    None, True, -1, 0, 1, 2, 7, 2**31, 2**40, 2**63, -(2**63), 10**30, 1e308, 0.5, "", "x", "\u202e<script>", "../..", [], {},
    [[]], {"type": "Sequence"}, "float64", "a" * 10_000,
]  # fmt: skip
"""Values that no honest file has where they are put."""


# --------------------------------------------------------------------------------------------------------------- bases
def write_bases(tiny_folder: Path, where: Path) -> list[Path]:
    """Healthy encoders to damage: the tiny one, a whole CLIP model around it, and one of every other family."""
    bases = [Path(shutil.copytree(tiny_folder, where / "clip_text"))]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bases.append(_whole_clip(tiny_folder, where / "clip"))
        for name in ("siglip", "bert", "roberta", "mpnet", "distilbert", "t5"):
            specials, build = FAMILY_KINDS[name]
            tokenizer, folder = letters(*specials), where / name
            build(len(tokenizer)).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            bases.append(folder)
    return bases


def _whole_clip(tiny_folder: Path, folder: Path) -> Path:
    shutil.copytree(tiny_folder, folder)
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    text = CLIPTextModel.from_pretrained(tiny_folder).config.to_dict()
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    return folder


# --------------------------------------------------------------------------------------------------------------- bytes
def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, removed, doubled or put in."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(data) + 1)
        how = rng.randrange(4)
        if how == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif how == 1:
            del data[at : at + rng.randrange(1, 64)]
        elif how == 2:
            data[at:at] = data[at : at + rng.randrange(1, 64)]
        else:
            data[at:at] = rng.randbytes(rng.randrange(1, 16))
    return bytes(data)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Some values replaced by odd ones, keys dropped or renamed, branches put in each other's place."""
    content = json.loads(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        places = list(branches(content))
        if not places:
            break
        holder, key = rng.choice(places)
        how = rng.randrange(5)
        if how <= 2:
            holder[key] = rng.choice(ODD)
        elif how == 3:
            del holder[key]
        else:
            other, name = rng.choice(places)
            holder[key] = json.loads(json.dumps(other[name])) if name in range_of(other) else None
    return json.dumps(content).encode()


def range_of(holder: dict | list):
    return holder if isinstance(holder, dict) else range(len(holder))


def branches(content: object):
    """Every place in a JSON document, as (holder, key); of long lists of tokens only some."""
    if isinstance(content, dict | list):
        keys = list(range_of(content))
        for key in keys if len(keys) < 50 else keys[:: len(keys) // 20]:
            yield content, key
            yield from branches(content[key])


def mutate_header(data: bytes, rng: random.Random) -> bytes:
    """The same for the header of a safetensors file, with a length that fits or lies."""
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = data[8 : 8 + length], data[8 + length :]
    header = rng.choice([mutate_json, mutate_bytes])(header, rng)
    claimed = rng.choice([len(header), len(header), len(header), rng.randrange(2**64), rng.randrange(2**16)])
    return struct.pack("<Q", claimed) + header + rest


def damage(folder: Path, rng: random.Random) -> str:
    """One file of a folder, damaged."""
    file = rng.choice([*sorted(folder.iterdir()), folder / WEIGHTS, folder / "config.json"])
    how = mutate_header if file.suffix == ".safetensors" else rng.choice([mutate_json, mutate_json, mutate_bytes])
    file.write_bytes(how(file.read_bytes(), rng))
    return f"{file.name} by {how.__name__}"


# -------------------------------------------------------------------------------------------------------------- config
def _known_keys() -> list[str]:
    """Every name that a text config's class knows, takes or maps, and those that the intake has an opinion on."""
    keys = {*MUTE, *ONE_VALUE}
    for family in FAMILIES.values():
        for kind in (family.config, *(getattr(family.config, "sub_configs", None) or {}).values()):
            keys |= {*kind().to_dict(), *inspect.signature(kind).parameters, *getattr(kind, "attribute_map", {})}
            keys |= {name for base in kind.__mro__ for name in getattr(base, "__annotations__", {})}
    return sorted(keys | set(OTHER_KEYS.split()))


OTHER_KEYS = """
auto_map transformers_weights configuration_files adapters rope_scaling rope_theta rope_parameters layer_types sliding_window
hidden_activation embedding_size projection_hidden_act output_projection use_bias norm_eps text_config_dict vision_config_dict
text_model vision_model base_model_name_or_path gguf_file subfolder variant state_dict weights_only use_safetensors device_map
low_cpu_mem_usage compression_config distributed_config
"""
"""Keys of other models, of other versions, and arguments that a loader may take from a config."""
KEYS = _known_keys()
WORDS = [
    "gelu", "quick_gelu", "relu", "silu", "gelu_new", "gelu_pytorch_tanh", "linear", "gated-gelu", "eager", "sdpa",
    "flash_attention_2", "flex_attention", "someone/kernel", "float16", "bfloat16", "float32", "torch.float16", "float8_e4m3fn",
    "absolute", "relative_key", "relative_key_query", "clip", "clip_text_model", "siglip_text_model", "bert", "roberta",
    "distilbert", "t5", "own.Model", "single_label_classification", "regression",
]  # fmt: skip
"""Values that some key or other of a config takes."""


def config_value(rng: random.Random, usual: object) -> object:
    """Something odd, something that another key takes, or something near the usual value."""
    near = [usual, str(usual), [usual], not usual]
    if isinstance(usual, int | float) and not isinstance(usual, bool):
        near = [usual * 2, usual / 2, usual // 2, -usual, usual + 1, usual - 1, float(usual), str(usual), usual * 1.5]
    return rng.choice([rng.choice(ODD), rng.choice(WORDS), rng.choice(near), rng.choice(near)])


def reconfigure_oddly(folder: Path, rng: random.Random) -> str:
    """Some keys of config.json with odd values, at the top, in text_config, or in a text_config of their own."""
    file, said = folder / "config.json", []
    config = json.loads(file.read_bytes())
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        levels = [config, config, *(config[k] for k in ("text_config", "text_config", "vision_config") if k in config)]
        level, where = rng.choice(levels), ""
        if not isinstance(level, dict):
            continue
        if rng.random() < 0.1:
            where = rng.choice(["text_config", "text_config_dict", "vision_config_dict", "encoder", "task_specific_params"])
            config[where] = level = dict(level) if rng.random() < 0.5 else {}
        key = rng.choice([rng.choice(KEYS), rng.choice(KEYS), rng.choice([*config])])
        if rng.random() < 0.1:
            level.pop(key, None)
            said.append(f"no {key}")
            continue
        level[key] = config_value(rng, level.get(key))
        said.append(f"{where} {key}={str(level[key])[:60]!r}")
    if rng.random() < 0.05:
        config["auto_map"] = {"AutoModel": "modeling_own.Own", "AutoConfig": "modeling_own.Own"}
        own_code(folder / "modeling_own.py")
        said.append("code")
    file.write_text(json.dumps(config))
    return ", ".join(said)


def own_code(file: Path) -> None:
    """A module that touches the canary when it is imported."""
    file.write_text(f"from pathlib import Path\nPath({str(file.parent.with_name(CANARY))!r}).touch()\nclass Own: pass\n")


# ----------------------------------------------------------------------------------------------------------- tokenizer
PIECES = [
    "", " ", "a", "e", "dog", "d", "</w>", "▁", "Ġ", "<|endoftext|>", "</s>", "[SEP]", "<pad>", "é", "e\u0301",
    "\u200b", "ab" * 9,
]  # fmt: skip
REGEXES = [
    r"\s+", r".", r"[aeiou]", r"^", r"$", r"\b", r"(?=d)", r"\p{L}+", r"o+|g", r"(a|b)*d", r"(", r"[^\s]", r"(?i)dog", "",
]  # fmt: skip
BEHAVIOURS = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous", "Odd"]


def _pattern(rng: random.Random) -> dict:
    return rng.choice([{"String": rng.choice(PIECES)}, {"Regex": rng.choice(REGEXES)}])


def _flag(rng: random.Random) -> bool:
    return rng.random() < 0.5


def _some(step: Callable, rng: random.Random, depth: int) -> list:
    return [step(rng, depth + 1) for _ in range(rng.choice([0, 1, 2, 3]))] if depth < 3 else []


def normaliser(rng: random.Random, depth: int = 0) -> dict:
    return rng.choice([
        lambda: {"type": "Replace", "pattern": _pattern(rng), "content": rng.choice(PIECES)},
        lambda: {"type": "Prepend", "prepend": rng.choice(PIECES)},
        lambda: {"type": rng.choice(["Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents", "Nmt", "ByteLevel", "Odd"])},
        lambda: {"type": "Strip", "strip_left": _flag(rng), "strip_right": _flag(rng)},
        lambda: {"type": "BertNormalizer", "clean_text": _flag(rng), "handle_chinese_chars": _flag(rng),
                 "strip_accents": rng.choice([None, True]), "lowercase": _flag(rng)},
        lambda: {"type": "Precompiled", "precompiled_charsmap": rng.choice(["", "AAAA", "x"])},
        lambda: {"type": "Sequence", "normalizers": _some(normaliser, rng, depth)},
    ])()  # fmt: skip


def pre_tokenizer(rng: random.Random, depth: int = 0) -> dict:
    return rng.choice([
        lambda: {"type": "ByteLevel", "add_prefix_space": _flag(rng), "trim_offsets": _flag(rng), "use_regex": _flag(rng)},
        lambda: {"type": "Split", "pattern": _pattern(rng), "behavior": rng.choice(BEHAVIOURS), "invert": _flag(rng)},
        lambda: {"type": "Punctuation", "behavior": rng.choice(BEHAVIOURS)},
        lambda: {"type": "Digits", "individual_digits": _flag(rng)},
        lambda: {"type": rng.choice(["Whitespace", "WhitespaceSplit", "UnicodeScripts", "BertPreTokenizer", "Odd"])},
        lambda: {"type": "Metaspace", "replacement": rng.choice(["▁", "_", "ab"]),
                 "prepend_scheme": rng.choice(["always", "never", "first"]), "split": _flag(rng)},
        lambda: {"type": "CharDelimiterSplit", "delimiter": rng.choice(["d", " ", "ab"])},
        lambda: {"type": "FixedLength", "length": rng.choice([0, 1, 5, -1])},
        lambda: {"type": "Sequence", "pretokenizers": _some(pre_tokenizer, rng, depth)},
    ])()  # fmt: skip


def post_processor(rng: random.Random, depth: int = 0, specials: tuple = (("<|endoftext|>", 513),)) -> dict:
    token, number = rng.choice(specials)

    def template() -> dict:
        row = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        row.append({"SpecialToken": {"id": rng.choice(specials)[0], "type_id": rng.choice([0, 1])}})
        known = {name: {"id": name, "ids": [i + rng.choice([0, 0, 0, 1])], "tokens": [name]} for name, i in specials}
        return {"type": "TemplateProcessing", "single": row[rng.choice([0, 0, 1]) :], "pair": row, "special_tokens": known}

    return rng.choice([
        template, template,
        lambda: {"type": rng.choice(["RobertaProcessing", "BertProcessing"]), "sep": [token, number],
                 "cls": list(rng.choice(specials)), "trim_offsets": _flag(rng), "add_prefix_space": _flag(rng)},
        lambda: {"type": "ByteLevel", "add_prefix_space": _flag(rng), "trim_offsets": _flag(rng), "use_regex": _flag(rng)},
        lambda: {"type": "Sequence", "processors": _some(lambda r, d: post_processor(r, d, specials), rng, depth)},
    ])()  # fmt: skip


def decoder(rng: random.Random, depth: int = 0) -> dict:
    return rng.choice([
        lambda: {"type": rng.choice(["ByteLevel", "Fuse", "ByteFallback", "Odd"])},
        lambda: {"type": "WordPiece", "prefix": rng.choice(PIECES), "cleanup": _flag(rng)},
        lambda: {"type": "BPEDecoder", "suffix": rng.choice(PIECES)},
        lambda: {"type": "Replace", "pattern": _pattern(rng), "content": rng.choice(PIECES)},
        lambda: {"type": "Strip", "content": rng.choice(["a", " ", "ab"]), "start": rng.choice([0, 1]), "stop": 0},
        lambda: {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": _flag(rng)},
        lambda: {"type": "Sequence", "decoders": _some(decoder, rng, depth)},
    ])()  # fmt: skip


def added_token(rng: random.Random, numbers: list[int]) -> dict:
    return {
        "id": rng.choice(numbers), "content": rng.choice([*PIECES, "a dog", "birds"]), "single_word": _flag(rng),
        "lstrip": _flag(rng), "rstrip": _flag(rng), "normalized": _flag(rng), "special": _flag(rng),
    }  # fmt: skip


def padding(rng: random.Random) -> dict:
    return {
        "strategy": rng.choice(["BatchLongest", {"Fixed": rng.choice([0, 5, 24, 2**20])}]),
        "direction": rng.choice(["Left", "Right"]), "pad_to_multiple_of": rng.choice([None, 0, 8]),
        "pad_id": rng.choice([0, 1, 7]), "pad_type_id": 0, "pad_token": rng.choice(PIECES),
    }  # fmt: skip


def truncation(rng: random.Random) -> dict:
    return {
        "direction": rng.choice(["Left", "Right"]), "max_length": rng.choice([0, 1, 5, 24]),
        "strategy": rng.choice(["LongestFirst", "OnlyFirst", "OnlySecond"]), "stride": rng.choice([0, 1, 30]),
    }  # fmt: skip


MODEL_OPTIONS = {
    "type": ["BPE", "WordLevel", "WordPiece", "Unigram"], "dropout": [None, 0.0, 0.5, 1.0, 2],
    "unk_token": [*PIECES, None], "continuing_subword_prefix": ["", "##", None, "a"],
    "end_of_word_suffix": ["", "</w>", None, "a"], "fuse_unk": [True, False], "byte_fallback": [True, False],
    "ignore_merges": [True, False], "max_input_chars_per_word": [0, 1, 100],
    "merges": [[], ["a b"], [["d", "o"]]], "unk_id": [0],
}  # fmt: skip
SETTINGS = {
    "tokenizer_class": ["CLIPTokenizer", "CLIPTokenizerFast", "BertTokenizer", "T5Tokenizer",
                        "PreTrainedTokenizerFast", "RobertaTokenizer", "TokenizersBackend", "LlamaTokenizerFast",
                        "own.Tokenizer"],
    "model_max_length": [1, 7, 8, 23, 24, 25, 1e30, 512], "padding_side": ["left", "right"],
    "truncation_side": ["left", "right"],
    "backend": ["tokenizers", "sentencepiece", "python", "mistral"], "fast_tokenizer_files": [["tokenizer.5.1.json"], []],
    "auto_map": [{"AutoTokenizer": ["modeling_own.Own", "modeling_own.Own"]}], "added_tokens_decoder": [
        {"3": {"content": "dog", "special": True}}, {"9": {"content": "a", "lstrip": True, "normalized": True}}],
    "extra_special_tokens": [["dog"], {"image_token": "<image>"}, []], "additional_special_tokens": [["a", "dog"]],
    "pad_to_multiple_of": [8], "padding": [True, "longest", "max_length"], "truncation": [True], "max_length": [8],
    "stride": [2], "model_input_names": [["input_ids"], ["pixels"]], "name_or_path": ["openai/clip-vit-base-patch32"],
}  # fmt: skip
FLAGS = """
add_prefix_space do_lower_case add_bos_token add_eos_token clean_up_tokenization_spaces split_special_tokens legacy use_fast
from_slow trust_remote_code local_files_only return_tensors strip_accents tokenize_chinese_chars keep_accents trim_offsets
do_basic_tokenize
"""
NAMES = """
bos_token eos_token unk_token pad_token sep_token cls_token mask_token errors vocab_file merges_file tokenizer_file
tokenizer_object chat_template sp_model_kwargs revision subfolder config_tokenizer_class processor_class special_tokens
spaces_between_special_tokens vocab merges _commit_hash tokenizer_type init_inputs
"""
SETTINGS |= {name: [True, False] for name in FLAGS.split()} | {name: PIECES for name in NAMES.split()}  # noqa: C420
"""Keys of tokenizer_config.json -> values that fit."""


def retokenize(folder: Path, rng: random.Random) -> str:
    """Some steps of tokenizer.json replaced or joined by others, or some settings changed."""
    said = []
    for _ in range(rng.choice([1, 1, 2])):
        change = rng.choice([_other_steps, _other_steps, _other_steps, _other_settings])
        said.append(change(folder, rng))
    return ", ".join(said)


def _other_settings(folder: Path, rng: random.Random) -> str:
    file = folder / "tokenizer_config.json"
    settings, key = json.loads(file.read_bytes()), rng.choice([*SETTINGS])
    value = settings[key] = rng.choice([rng.choice(ODD), *[rng.choice(SETTINGS[key])] * 3])
    gone = [name for name in settings if name != key and rng.random() < 0.05]
    file.write_text(json.dumps({name: value for name, value in settings.items() if name not in gone}))
    if key == "auto_map":
        own_code(folder / "modeling_own.py")
    if "tokenizer_class" in gone and (folder / "config.json").exists():  # loaders then ask the encoder's config
        config = json.loads((folder / "config.json").read_bytes())
        if rng.random() < 0.5:
            config["tokenizer_class"] = rng.choice(SETTINGS["tokenizer_class"])
        (folder / "config.json").write_text(json.dumps(config))
        gone.append(f"but {config.get('tokenizer_class')} in config.json")
    return f"settings {key}={str(value)[:60]!r}" + f" without {gone}" * bool(gone)


STEPS = [
    "normalizer", "normalizer", "pre_tokenizer", "post_processor", "decoder", "added", "model", "padding", "truncation",
]  # fmt: skip


def _other_steps(folder: Path, rng: random.Random) -> str:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_bytes())
    added = content["added_tokens"]
    specials = tuple((token["content"], token["id"]) for token in added) or (("<s>", 0),)
    part = rng.choice(STEPS)
    if part in ("normalizer", "pre_tokenizer"):
        new = (normaliser if part == "normalizer" else pre_tokenizer)(rng)
        usual, inner = content[part], part.replace("pre_", "pre") + "s"
        if usual and rng.random() < 0.7:
            new = {"type": "Sequence", inner: rng.sample([usual, new], 2)}
    elif part == "added":
        new = added_token(rng, [0, 3, len(content["model"]["vocab"]) - 1, len(content["model"]["vocab"]), specials[-1][1]])
        added.insert(rng.choice([0, len(added)]), new)
    elif part == "model":
        key = rng.choice([*MODEL_OPTIONS])
        new = content["model"][key] = rng.choice(MODEL_OPTIONS[key])
        part = f"model {key}"
    else:
        makers = {"decoder": decoder, "padding": padding, "truncation": truncation}
        new = post_processor(rng, 0, specials) if part == "post_processor" else makers[part](rng)
    if isinstance(new, dict) and new and rng.random() < 0.15:
        key = rng.choice([*new])
        new[key] = rng.choice(ODD)
    if part in content and part != "model":
        content[part] = new
    file.write_text(json.dumps(content))
    return f"{part} {json.dumps(new)[:160]}"


# --------------------------------------------------------------------------------------------------------------- index
def shard(folder: Path, rng: random.Random) -> str:
    """The weights in several files with an index, and something wrong with them."""
    values = load_file(folder / WEIGHTS)
    names, parts, variant = sorted(values), rng.choice([1, 2, 3]), rng.choice(["", "", "", ".fp16"])
    if rng.random() < 0.3:
        rng.shuffle(names)
    inside = {f"model{variant}-0000{i + 1}-of-0000{parts}.safetensors": names[i::parts] for i in range(parts)}
    where = {name: file for file, ours in inside.items() for name in ours}
    index: dict = {"metadata": {"total_size": 1}, "weight_map": where}
    files, one = [*inside], rng.choice(names)
    write = {file: {name: values[name].clone() for name in ours} for file, ours in inside.items()}
    said = []
    for _ in range(rng.choice([0, 1, 1, 2])):
        how = rng.choice([
            "another shard", "no such shard", "doubled", "other numbers twice", "not in the map", "not in a shard", "missing",
            "further shard", "above", "below", "odd map", "odd entry", "odd metadata", "two indexes", "whole beside", "renamed",
            "variant beside", "case",
        ])  # fmt: skip
        said.append(how)
        file = rng.choice(files)
        if how == "another shard":
            where[one] = file
        elif how == "no such shard":
            where[one] = "model-00009-of-00009.safetensors"
        elif how in ("doubled", "other numbers twice"):
            write[file][one] = values[one] + (how != "doubled")
        elif how == "not in the map":
            where.pop(one, None)
        elif how == "not in a shard":
            write[file].pop(one, None)
        elif how == "missing":
            write.pop(file, None)
            files = [*write] or files
        elif how == "further shard":
            write["model-00007-of-00007.safetensors"] = {rng.choice([one, "own"]): values[one] + 1}
        elif how == "above":
            save_file(values, folder.parent / "outside.safetensors")
            where[one] = "../outside.safetensors"
        elif how == "below":
            (folder / "sub").mkdir(exist_ok=True)
            save_file({one: values[one] + 1}, folder / "sub" / "model.safetensors")
            where[one] = "sub/model.safetensors"
        elif how == "odd map":
            index["weight_map"] = rng.choice(ODD)
        elif how == "odd entry":
            where[rng.choice([one, "own"])] = rng.choice(ODD)
        elif how == "odd metadata":
            index["metadata"] = rng.choice(ODD)
        elif how == "two indexes":
            name = rng.choice(["model.safetensors.index.fp16.json", "model.safetensors.index.2.json",
                               "other.safetensors.index.json", "pytorch_model.bin.index.json"])  # fmt: skip
            (folder / name).write_text(json.dumps(index))
        elif how == "renamed":
            write["MODEL.safetensors"] = write.get(file, {})
        elif how == "variant beside":
            save_file({name: value + 1 for name, value in values.items()}, folder / "model.fp16.safetensors")
        elif how == "case":
            where = index["weight_map"] = {name.upper(): file for name, file in where.items()}
    if "whole beside" not in said:
        (folder / WEIGHTS).unlink()
    for file, ours in write.items():
        save_file(ours, folder / file, metadata={"format": "pt"})
    (folder / f"model.safetensors.index{variant}.json").write_text(json.dumps(index))
    return f"{parts} shards{variant}: {', '.join(said) or 'in order'}"


# -------------------------------------------------------------------------------------------------------------- beside
def _bomb(file: Path) -> None:
    file.write_bytes(pickle.dumps(Bomb(_canary(file))))


def _torch_bomb(file: Path) -> None:
    torch.save({"a": Bomb(_canary(file))}, file)


def _canary(file: Path) -> Path:
    """Beside the model's folder, which is called model."""
    return next(parent for parent in file.parents if parent.name == "model").with_name(CANARY)


def _json(**content: object) -> Callable[[Path], None]:
    return lambda file: file.write_text(json.dumps(content))


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(content)


def _tensors(prefix: str) -> Callable[[Path], None]:
    return lambda file: save_file({f"{prefix}weight": torch.ones(2)}, file, metadata={"format": "pt"})


def _whole_folder(file: Path) -> None:
    """The encoder itself once more, in a folder below."""
    model = next(parent for parent in file.parents if parent.name == "model")
    file.mkdir()
    for one in [*model.rglob("config.json"), *model.rglob(WEIGHTS)][:2]:
        shutil.copy(one, file)


EXTRA: dict[str, tuple[list[str], Callable[[Path], None]]] = {
    "a pickle": (["pytorch_model.bin", "model.pt", "notes.txt", "training_args.bin", "optimizer.pt", "1.png"], _bomb),
    "a torch pickle": (["pytorch_model.bin", "diffusion_pytorch_model.bin", "weights", "model.ckpt"], _torch_bomb),
    "an index of pickles": (["pytorch_model.bin.index.json"], _json(weight_map={"a": "pytorch_model-1.bin"})),
    "ONNX": (["model.onnx", "onnx/model.onnx", "README.md"], _bytes(b"\x08\x07\x12\x07pytorch")),
    "GGUF": (["model.gguf", "README.md", "model-q4.bin"], _bytes(b"GGUF\x03" + bytes(40))),
    "HDF5": (["tf_model.h5", "model.weights.h5", "data"], _bytes(b"\x89HDF\r\n\x1a\n" + bytes(40))),
    "Flax": (["flax_model.msgpack"], _bytes(b"\x81\xa1a\xc0")),
    "numpy": (["weights.npz", "x.npy"], _bytes(b"PK\x03\x04" + bytes(40))),
    "an adapter's config": (["adapter_config.json", "sub/adapter_config.json"], _json(base_model_name_or_path="someone/base")),
    "an adapter": (["adapter_model.safetensors", "pytorch_lora_weights.safetensors"], _tensors("lora_A.")),
    "a single file": (["v1-5.safetensors"], _tensors("cond_stage_model.")),
    "other tensors": (["vision.safetensors", "model.fp16.safetensors", "consolidated.safetensors"], _tensors("vision_model.")),
    "damaged tensors": (["x.safetensors", "model.bf16.safetensors"], _bytes(bytes(20))),
    "a config's version": (["config.4.0.0.json", "tokenizer.5.1.json", "tokenizer_config.9.0.json"], _json(hidden_size=7)),
    "a config": (["sub/config.json", "1_Pooling/config.json", "text_encoder/config.json"], _json(model_type="bert")),
    "an odd config": (["sub/config.json", "1_Pooling/config.json", "tokenizer/config.json"], _json(model_type=[])),
    "a config beside a tokenizer": (["tokenizer/config.json"], _json(model_type="olmo2", tokenizer_class="GPT2Tokenizer")),
    "a pooling": (["1_Pooling/config.json"], _json(pooling_mode_cls_token=True)),
    "another library's": (["modules.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
                           "video_preprocessor_config.json", "config_sentence_transformers.json", "params.json"],
                          _json(processor_class="own.Own", auto_map={"AutoProcessor": "modeling_own.Own"})),
    "tokenizer files": (["special_tokens_map.json", "added_tokens.json", "vocab.json", "sub/tokenizer.json"],
                        _json(pad_token="a", eos_token="a", dog=3)),
    "tokenizer texts": (["vocab.txt", "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "tekken.json",
                         "chat_template.jinja", "additional_chat_templates/x.jinja", "tokenizer.tiktoken"],
                        _bytes(b"a b\nd o\n")),
    "code": (["modeling_own.py", "setup.py", "conftest.py", "handler.py", "__init__.py"], own_code),
    "a link out": (["model.bin", "sub/model.safetensors", "out"], lambda file: file.symlink_to("/etc/hostname")),
    "a link in": (["model.fp16.safetensors", "pytorch_model.safetensors"], lambda file: file.symlink_to(WEIGHTS)),
    "a link in a circle": (["loop", "sub/loop"], lambda file: file.symlink_to(".")),
    "a pipe": (["pipe", "sub/pipe.bin", "sub/model.safetensors", "README.md"], os.mkfifo),
    "a picture": (["a.png", "sub/a.jpg", "model.bin"], _bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))),
    "a text": (["README.md", "LICENSE", "model.bin", "logs/run.txt", "\u202ex.md"], _bytes("größer".encode())),
    "nothing": (["empty", "model.bin", "x.safetensors"], _bytes(b"")),
    "anything": (["unknown.dat", "model.bin", "data.tar.gz"], _bytes(bytes(range(256)))),
    "a folder in place of a file": (["added_tokens.json", "model.fp16.safetensors", "adapter_config.json"], Path.mkdir),
    "an encoder below": (["checkpoint-1", "text_encoder_3", "sub/deep"], _whole_folder),
}  # fmt: skip
"""What lies beside an encoder -> names, what writes it."""


def put_beside(folder: Path, rng: random.Random) -> str:
    """One to three further files; some in place of a file that belongs there."""
    said = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        kind = rng.choice([*EXTRA])
        names, write = EXTRA[kind]
        name = rng.choice(names)
        file = folder / rng.choice(["", "", "", "old", "vision_model"]) / name
        if file.exists() or file.is_symlink() or any(parent.is_symlink() for parent in file.parents):
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file)
        said.append(f"{kind} {file.relative_to(folder)}")
    return ", ".join(said)


# ----------------------------------------------------------------------------------------------------------- pipelines
COMPONENTS = [
    "text_encoder", "text_encoder_2", "text_encoder_3", "prompt_reader", "encoder", "unet", "tokenizer", "tokenizer_2", "vae",
    "..", "a/b", "", "_hidden", "\u202etext_encoder", "TEXT_ENCODER", "text_encoder_22", "feature_extractor",
]  # fmt: skip
LIBRARIES = ["transformers", "diffusers", "onnxruntime", "stable_diffusion", "os", "modeling_own", None, "", 7]
CHANGES = ["entry", "entry", "copy", "copy", "move", "class", "root", "json", "damage", "config", "steps", "beside"]
CLASSES = [*PIPELINE_ENCODERS, "CLIPTokenizer", "UNet2DConditionModel", "CLIPVisionModel", "AutoModel", "Own", None, {}]


def rebuild(folder: Path, rng: random.Random) -> str:
    """A pipeline around the encoder, with odd entries and odd components, and now and then a root beside it."""
    plain = folder.rename(folder.with_name("plain"))
    as_pipeline(plain, folder)
    file, said = folder / "model_index.json", []
    index = json.loads(file.read_bytes())
    for _ in range(rng.choice([1, 1, 2, 3])):
        how = rng.choice(CHANGES)
        name, entry = rng.choice(COMPONENTS), [rng.choice(LIBRARIES[:2] * 3 + LIBRARIES), rng.choice(CLASSES)]
        usable = name not in ("", "..") and not (folder / name).exists()
        said.append(f"{how} {name!r}")
        if how == "entry":
            index[name] = rng.choice([entry, entry, entry, rng.choice(ODD), entry * 2])
        elif how == "copy" and usable:
            index[name] = rng.choice([["transformers", "CLIPTextModel"], entry])
            shutil.copytree(folder / "text_encoder", folder / name)
            if rng.random() < 0.5:
                _disturb(folder / name / WEIGHTS)
        elif how == "move" and usable and (folder / "text_encoder").exists():
            (folder / name).parent.mkdir(exist_ok=True)
            index[name] = index.pop("text_encoder", ["transformers", "CLIPTextModel"])
            shutil.move(folder / "text_encoder", folder / name)
            break
        elif how == "class":
            index[rng.choice(["_class_name", "_diffusers_version", "_name_or_path"])] = rng.choice([*ODD, ["own", "Own"]])
        elif how == "root":
            for part in rng.choice([["config.json", WEIGHTS], ["config.json"], [WEIGHTS], [f.name for f in plain.iterdir()]]):
                shutil.copy(plain / part, folder / part)
            if rng.random() < 0.5 and (folder / WEIGHTS).exists():
                _disturb(folder / WEIGHTS)
        elif how == "damage":  # nothing else can change what may be no JSON any more
            said.append(damage(folder / "text_encoder", rng))
            break
        elif how == "config":
            said.append(reconfigure_oddly(folder / "text_encoder", rng))
        elif how == "steps":
            said.append(retokenize(folder / "tokenizer", rng))
        elif how == "beside":
            said.append(put_beside(folder, rng))
        elif how == "json":
            index = json.loads(mutate_json(json.dumps(index).encode(), rng))
            if not isinstance(index, dict):
                break
    if rng.random() < 0.1:
        own_code(folder / "modeling_own.py")
    file.write_text(json.dumps(index))
    shutil.rmtree(plain)
    return ", ".join(said)


def _disturb(weights: Path) -> None:
    """Other weights of the same shapes."""
    values = load_file(weights)
    save_file({name: value + 0.5 for name, value in values.items()}, weights, metadata={"format": "pt"})


# ------------------------------------------------------------------------------------------------------------- mutants
WAYS: dict[str, Callable[[Path, random.Random], str]] = {
    "bytes": damage, "config": reconfigure_oddly, "tokenizer": retokenize, "index": shard, "beside": put_beside,
    "pipeline": rebuild,
}  # fmt: skip
TURNS = (*WAYS, "config", "tokenizer", "bytes", "config")
"""Kinds in their turn, those with most to vary more often."""


def make_mutant(bases: list[Path], place: Path, seed: int, number: int) -> tuple[str, str]:
    """Write the mutant of this number to place/model.  -> its kind, and what was done"""
    rng = random.Random(f"{seed} {number}")
    for old in place.iterdir():
        shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    kind = TURNS[number % len(TURNS)]
    # half of all mutants are of the main family
    base = bases[0] if kind == "pipeline" or rng.random() < 0.5 else rng.choice(bases)
    folder = Path(shutil.copytree(base, place / "model"))
    return kind, f"{base.name}: {WAYS[kind](folder, rng)}"
