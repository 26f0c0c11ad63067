"""The parts of a model folder, each loaded on first use."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, cast

from pictish.io.hub import is_repo
from pictish.io.model_folder import fingerprint, locate_model, read_config, resolve_model
from pictish.lm.captions import CAPTIONS
from pictish.pipelines.language import Precision
from pictish.training.isolation import loading

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pictish.lm.adapted import Base
    from pictish.lm.model import UnifiedModel
    from pictish.lm.quantize import Bits
    from pictish.pipelines.language import Language
    from pictish.pipelines.reconstruct import Reconstructor
    from pictish.pipelines.text_to_image import TextToImage
    from pictish.tokenizer.dynamic import Tokenizer

Dtype = Literal["float32", "bfloat16"]


def _sees(model: str | Path) -> bool:
    """Whether a language model of this folder sees through a vision tower, or reads no codes."""
    try:
        config = read_config(locate_model(model, "lm"))
    except ValueError:  # there is none, or it is damaged: whoever loads it says so
        return False
    return config.get("part") == "lm" and (
        config.get("vision") is not None or config.get("image_tokens", {}) is None
    )


class ModelParts:
    """What `Pipeline` works with; safe to use from several threads."""

    def __init__(
        self,
        model: str | Path,
        device: "torch.device",
        precision: Precision,
        lm: str | Path | None = None,
        quantize: "Bits | None" = None,
    ) -> None:
        self.quantize = quantize
        self.model, self.device, self.precision = model, device, precision
        self.lm = model if lm is None else lm
        self._base: Base | None = None
        self._adapted: dict[str, Language] = {}
        self._adaptor_folders: dict[str, Path] = {}
        self._fingerprints: dict[Path, str] = {}
        self._tokenizer: Tokenizer | None = None
        self._model: UnifiedModel | None = None
        self._language: Language | None = None
        self._reconstructors: dict[bool, Reconstructor] = {}

    def __repr__(self) -> str:
        parts = {
            "tokenizer": self._tokenizer,
            "language_model": self._model,
            "decoder": self._reconstructors,
        }
        loaded = ", ".join(name for name, part in parts.items() if part) or "nothing"
        return (
            f"{type(self).__name__}({str(self.model)!r}, {self.device}, {self.precision}; loaded: {loaded})"
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "starter",
        *,
        revision: str | None = None,
        device: "str | torch.device" = "auto",
        dtype: "Dtype | torch.dtype" = "float32",
        lm: str | Path | None = None,
        quantize: "Bits | None" = None,
    ) -> Self:
        """A model by name (`"starter"` ships with the package), by the path of its folder, or of the hub.

        A model of the Hugging Face Hub is `"user/repo"`, at a `revision` (branch, tag, commit) if given.
        `device` is "auto" (CUDA where there is a GPU), "cpu", "cuda" or "cuda:N". `dtype`, float32 or
        bfloat16, is that of the language model, the denoiser and, on a GPU, the upscaler. `lm` is the folder
        of another language model than the model's own: one of pictish, or, for use with adaptors alone, any
        causal language model of transformers. With `quantize`, "int8" or "int4", the weights of the
        language model, but not of adaptors, are quantized once loaded. Nothing is loaded yet. ValueError for
        a folder without a tokenizer, a repository that does not exist, a device that is not there and other
        types; OSError where the hub fails.
        """
        from pictish.training.runtime import resolve_device

        precision = str(dtype).removeprefix("torch.")
        if quantize not in (None, "int8", "int4"):
            raise ValueError(f"quantize: {quantize!r} asked for; int8 or int4 fits")
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"dtype: {dtype} asked for; float32 or bfloat16 fits")
        if revision is not None or is_repo(str(model)):
            model = resolve_model(model, revision)
        if not _sees(model if lm is None else lm):
            locate_model(model, "tokenizer")
        return cls(model, resolve_device(str(device)), cast(Precision, precision), lm, quantize)

    def save_pretrained(
        self, folder: str | Path, *, license: str | None = None, overwrite: bool = False
    ) -> None:
        """Write the model to a folder, with a model card and a manifest of its files.

        The parts are copied as they lie in the model's folder; weights changed in memory are not in them.
        ValueError where the folder exists and `overwrite` is False, or holds anything else.
        """
        from pictish.pipelines.publish import save

        save(self.model, Path(folder).expanduser(), license=license, overwrite=overwrite)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a pictish model",
    ) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face Hub in one commit; the commit's address.

        The repository is made if it is not there, `private` or not. HF_TOKEN or `hf auth login` give access.
        An interrupted upload resumes. ValueError for parts that do not fit, OSError where the hub fails.
        """
        from pictish.pipelines.publish import push

        return push(
            self.model, repo_id, license=license, private=private, revision=revision, message=commit_message
        )

    @property
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer, loaded on first use."""
        return self._tokenizer or self._load_tokenizer()

    @property
    def language_model(self) -> "UnifiedModel":
        """The language model with its text tokenizer and projectors, loaded on first use."""
        return self._model or self._load_model()

    @property
    def language(self) -> "Language":
        """Tokenizer and language model, joined; loaded on first use."""
        return self._language or self._load_language()

    def reconstructor(self, *, preview: bool = False) -> "Reconstructor":
        """Tokenizer and diffusion decoder, or feed-forward `preview`, joined; loaded on first use."""
        return self._reconstructors.get(preview) or self._load_reconstructor(preview)

    def text_to_image(
        self, reconstructor: "Reconstructor | None" = None, adaptor: str | None = None
    ) -> "TextToImage":
        """The language model, read through the adaptor if one is named, and what decodes its tokens."""
        from pictish.pipelines.text_to_image import TextToImage

        captions = locate_model(self.lm, "lm") / CAPTIONS
        return TextToImage(self.language_with(adaptor), reconstructor, captions)

    @property
    def adaptors(self) -> list[str]:
        """Names of the adaptors that are loaded."""
        return sorted(self._adapted)

    def load_adaptor(self, folder: str | Path, name: str | None = None) -> str:
        """Load an inner adaptor beside the language model, as `name` or as its folder is called; the name.

        Text, and what other adaptors say, stays the same bits. ValueError for a folder that holds none, or
        one of another language model, and for a name that is taken.
        """
        from pictish.pipelines.adaptors import choose_adaptor, language_with

        chosen = choose_adaptor(None, "starter", [Path(folder).expanduser()])
        assert chosen is not None
        if self.chats:
            raise ValueError("adaptors: this language model sees through a vision tower, and takes none")
        name = name or chosen[0]
        if name in self._adapted:
            raise ValueError(f"an adaptor called {name} is loaded already; unload it, or give another name")
        self._adapted[name] = language_with(self.tokenizer, self._base_of_adaptors(), chosen[1])
        self._adaptor_folders[name] = chosen[1]
        return name

    def unload_adaptor(self, name: str) -> None:
        """Forget an adaptor and free its memory; ValueError when none of this name is loaded."""
        if self._adapted.pop(name, None) is None:
            raise ValueError(f"no adaptor called {name} is loaded; {', '.join(self.adaptors) or 'none is'}")

    @property
    def language_fingerprint(self) -> str:
        """That of the language model's folder; read once, since a folder that is loaded does not change."""
        return self._fingerprint_of(locate_model(self.lm, "lm"))

    def adaptor_fingerprint(self, name: str) -> str:
        """That of the folder that a loaded adaptor came from."""
        return self._fingerprint_of(self._adaptor_folders[name])

    def _fingerprint_of(self, folder: Path) -> str:
        if folder not in self._fingerprints:
            self._fingerprints[folder] = fingerprint(folder)
        return self._fingerprints[folder]

    def language_with(self, adaptor: str | None) -> "Language":
        """Tokenizer and language model, read through a loaded adaptor or one of the model's `adaptors/`."""
        from pictish.pipelines.adaptors import choose_adaptor

        if adaptor is None:
            return self.language
        if adaptor not in self._adapted:
            chosen = choose_adaptor(adaptor, self.model)
            assert chosen is not None
            self.load_adaptor(chosen[1], adaptor)
        return self._adapted[adaptor]

    def languages_for(self, adaptor: str | Sequence[str | None] | None, count: int) -> "list[Language]":
        """`language_with` for each of `count` rows; ValueError for another number of names."""
        names = [adaptor] * count if adaptor is None or isinstance(adaptor, str) else list(adaptor)
        if len(names) != count:
            raise ValueError(f"adaptor: {len(names)} names for {count} images; one for each would fit")
        return [self.language_with(name) for name in names]

    @loading
    def _base_of_adaptors(self) -> "Base":
        import torch

        from pictish.io.model_folder import CONFIG
        from pictish.lm.adapted import locate_base, read_base
        from pictish.pipelines.adaptors import base_of

        if self._base is None:
            if (locate_base(self.lm) / CONFIG).is_file():
                self._base = base_of(self.language.model, self.lm)
            else:
                self._base = read_base(self.lm, self.device, getattr(torch, self.precision))
                self._quantized(self._base.language)
        return self._base

    @loading
    def _load_tokenizer(self) -> "Tokenizer":
        from pictish.tokenizer.dynamic import Tokenizer

        if self._tokenizer is None:  # else another thread has loaded it meanwhile
            self._tokenizer = Tokenizer.from_folder(self.model, self.device)
        return self._tokenizer

    @loading
    def _load_model(self) -> "UnifiedModel":
        import torch

        from pictish.lm.model import UnifiedModel

        if self._model is None:
            model = UnifiedModel.from_folder(self.lm, self.device, getattr(torch, self.precision))
            self._quantized(model.language)
            self._model = model
        return self._model

    @loading
    def _load_language(self) -> "Language":
        from pictish.pipelines.language import Language

        if self._language is None:
            self._language = Language(self.tokenizer, self.language_model)
        return self._language

    def _quantized(self, language: "PreTrainedModel") -> None:
        """Quantize a language model in place where that was asked for; adaptors beside it keep their type."""
        from pictish.lm.quantize import quantize

        if self.quantize is not None:
            quantize(language, self.quantize)

    @property
    def chats(self) -> bool:
        """Whether the model sees through a vision tower, or has no codes: then it answers messages."""
        return _sees(self.lm)

    @loading
    def _load_reconstructor(self, preview: bool) -> "Reconstructor":
        from pictish.pipelines.reconstruct import Reconstructor

        if preview not in self._reconstructors:
            steps = 0 if preview else None
            self._reconstructors[preview] = Reconstructor.from_folder(
                self.model, self.device, self.tokenizer, steps=steps, precision=self.precision
            )
        return self._reconstructors[preview]
