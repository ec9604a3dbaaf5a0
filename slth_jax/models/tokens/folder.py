"""Tokenizers and chat templates of Hugging Face folders, through the library `tokenizers`."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slth_jax import checks, storage
from slth_jax.storage import Damaged, reason

# The files that determine a tokenizer, its chat template and the tokens that end a text.
FILES = (
    "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "chat_template.jinja",
    "special_tokens_map.json", "generation_config.json",
)  # fmt: skip

_LARGEST = 9999  # the limit on powers and repetitions in a template


class FolderTokenizer:
    """A tokenizer read from ``tokenizer.json``, or from ``vocab.json`` and ``merges.txt`` (GPT-2).

    Attributes:
      stop: the tokens that end a text or a turn of a chat, according to the folder's configuration
        files.
      start: the token with which generation from an empty text begins; None if there is none.
    """

    def __init__(self, folder: Path, *, name: str | None = None):
        """Read the files of the folder; error messages call the folder `name`.

        Raises:
          CheckpointError: a file is missing or damaged.
          ModuleNotFoundError: the library `tokenizers` is not installed.
        """
        try:
            import tokenizers
        except ModuleNotFoundError as error:
            message = f'{folder} needs the library tokenizers: pip install "slth-jax[models]"'
            raise ModuleNotFoundError(message) from error
        self._folder, self._name = folder, name or str(folder)
        self._config = read_object(folder / "tokenizer_config.json")
        try:
            if (folder / "tokenizer.json").exists():
                text = storage.read_bytes(folder / "tokenizer.json").decode()
                self._tokenizer = tokenizers.Tokenizer.from_str(text)
            else:
                paths = (str(folder / name) for name in ("vocab.json", "merges.txt"))
                model = tokenizers.models.BPE.from_file(*paths)
                self._tokenizer = tokenizers.Tokenizer(model)
                self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
                    add_prefix_space=False
                )
                self._tokenizer.decoder = tokenizers.decoders.ByteLevel()
                end = "<|endoftext|>"
                if self._tokenizer.token_to_id(end) is not None:
                    self._tokenizer.add_special_tokens([end])
                    self._config.setdefault("eos_token", end)
        except storage.CheckpointError:
            raise
        except Exception as error:  # the library raises plain Exception
            raise Damaged(f"{folder} has no readable tokenizer: {reason(error)}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.stop = self._stop_tokens()
        self.start = self._id("bos_token")
        if self.start is None:
            self.start = min(self.stop, default=None)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of `text`, including special tokens that the tokenizer adds."""
        tokens = self._tokenizer.encode(text).ids
        return tokens or ([] if self.start is None else [self.start])

    def encode_texts(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """Return the tokens of each text, with special tokens, cut to at most `length` tokens."""
        self._tokenizer.enable_truncation(length)
        encoded = self._tokenizer.encode_batch(list(texts))
        self._tokenizer.no_truncation()
        return [text.ids for text in encoded]

    def chat(self, text: str) -> list[int]:
        """Return the tokens of a chat with one user message `text`, before the model's answer.

        Raises:
          ValueError: the folder has no chat template, or the template raises an error.
        """
        rendered = _render(self._template(), text, self._config)
        return self._tokenizer.encode(rendered, add_special_tokens=False).ids

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of `tokens` without special tokens."""
        return self._tokenizer.decode([int(token) for token in tokens], skip_special_tokens=True)

    def __repr__(self) -> str:
        """Return a short text with the folder's name and the size of the vocabulary."""
        return f"FolderTokenizer({self._name!r}: {self._tokenizer.get_vocab_size()} tokens)"

    def _id(self, name: str) -> int | None:
        """Return the special token that the configuration calls `name`; None if there is none."""
        token = self._config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        return self._tokenizer.token_to_id(token) if isinstance(token, str) else None

    def _stop_tokens(self) -> frozenset[int]:
        end = self._id("eos_token")
        return frozenset(stated_ends(self._folder) | ({end} if end is not None else set()))

    def _template(self) -> str:
        path = self._folder / "chat_template.jinja"
        template = self._config.get("chat_template")
        if path.exists():
            return storage.read_bytes(path).decode(errors="replace")
        if isinstance(template, list):  # several named templates
            named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
            template = named.get("default")
        if not isinstance(template, str):
            allowed = "given only if the tokenizer's folder has a chat template"
            raise checks.fail("--chat", allowed, f"none in {self._name}")
        return template


def stated_ends(folder: Path) -> set[int]:
    """Return the tokens that the model's configuration files list as ends of a text."""
    ends: set[Any] = set()
    for name in ("generation_config.json", "config.json"):
        value = read_object(folder / name).get("eos_token_id")
        ends |= set(value if isinstance(value, list) else [value])
    return {token for token in ends if isinstance(token, int)}


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an absent file gives an empty object."""
    value = storage.read_json(path) if path.exists() else {}
    if not isinstance(value, dict):
        raise Damaged(f"{path} is damaged: no JSON object")
    return value


def _render(template: str, text: str, config: Mapping[str, Any]) -> str:
    """Render a chat of one message with the template, in a sandbox like that of `transformers`."""
    try:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError as error:
        message = 'chat templates need the library jinja2: pip install "slth-jax[models]"'
        raise ModuleNotFoundError(message) from error

    def refuse(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    class Bounded(ImmutableSandboxedEnvironment):
        """A template environment that limits sizes, so that no template can fill the memory."""

        intercepted_binops = frozenset(("*", "**", "%"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sides = [side for side in (left, right) if isinstance(side, (int, float))]
            repeats = operator == "*" and len(sides) < 2
            text = isinstance(left, str) and re.search(r"\d{5}", left)
            if (operator == "**" or repeats) and any(abs(side) > _LARGEST for side in sides):
                refuse(f"{operator} with a number beyond {_LARGEST}")
            if operator == "%" and text:
                refuse(f"% with a width beyond {_LARGEST}")
            return super().call_binop(context, operator, left, right)

    environment = Bounded(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(
        value, ensure_ascii=False, **options
    )
    environment.globals["raise_exception"] = refuse
    tokens = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in config.items()
        if name.endswith("_token")
    }
    messages = [{"role": "user", "content": text}]
    try:
        compiled = environment.from_string(template)
        return compiled.render(messages=messages, add_generation_prompt=True, tools=None, **tokens)
    except Exception as error:  # the template's code may raise any error
        raise checks.fail("the chat template", "one that renders", reason(error)) from error
