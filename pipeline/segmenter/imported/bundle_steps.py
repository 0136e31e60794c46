"""Effects of a MONAI bundle's transforms on images and outputs, as knobs of this project."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import BadInput
from pipeline.segmenter.imported.bundle_config import Config, class_name

_OF_ALL = frozenset({"keys", "allow_missing_keys", "dtype", "_desc_", "_disabled_", "_requires_", "_target_"})
"""Arguments of all transforms that do not change the network's input."""

Effect = dict[str, Any]
"""Effect of transforms: knobs of `preprocess`, or `head`."""


@dataclass
class Step:
    """A transform of a bundle and its arguments. An argument that is not read is refused by `finish`."""

    config: Config
    at: str
    """Place of the transform in the configuration."""
    name: str
    arguments: Mapping[str, Any]
    channels: int
    """Number of channels of the cases."""
    found: Effect
    """Effect of the steps before this step."""
    place: int = 0
    """Index of the image's key among the keys."""
    notes: list[str] = field(default_factory=list)
    """Notes for the user on differences of the transform in this project."""

    def __post_init__(self) -> None:
        self._unread = set(self.arguments) - _OF_ALL

    def get(self, name: str, default: Any = None) -> Any:
        """Plain value of an argument, or `default`. The argument counts as read."""
        self._unread.discard(name)
        if name not in self.arguments:
            return default
        return self.config.plain(self.arguments[name], f"{self.at}::{name}")

    def mode(self, default: str) -> Any:
        """Interpolation of the image. MONAI takes one mode for all keys, or one mode per key."""
        found = self.get("mode", default)
        return found[self.place] if isinstance(found, list) and self.place < len(found) else found

    def note(self, what: str) -> None:
        self.notes.append(f"{self.at}: {self.name} {what}")

    def expect(self, **values: Any) -> None:
        """Raise `BadInput` for arguments with other values. With these values this project does the same as MONAI."""
        for name, value in values.items():
            if (found := self.get(name, value)) != value:
                raise self.refusal(f"{name}: {found}")

    def drop(self, *names: str) -> None:
        """Ignore arguments that do not change the effect, whatever their values are."""
        self._unread -= set(names)

    def finish(self) -> None:
        if self._unread:
            raise self.refusal(", ".join(sorted(self._unread)))

    def refusal(self, what: str) -> BadInput:
        """Error for a use of the transform that this project does not support."""
        return BadInput(
            f"{self.config.path}: {self.at}: {self.name} with {what} is not known here; list '{self.name}' under "
            "base.ignore if the network can do without, which changes its input or output"
        )


def _load(step: Step) -> Effect:
    step.drop("reader", "image_only", "meta_keys", "meta_key_postfix", "overwriting", "prune_meta_pattern")
    step.drop("ensure_channel_first", "simple_keys", "prune_meta_sep", "expanduser")
    return {"transposed": step.get("reverse_indexing", True) is not False}


def _nothing(step: Step) -> Effect:
    """No effect, whatever the arguments of the transform are."""
    return {}


def _orientation(step: Step) -> Effect:
    step.drop("labels", "lazy")
    # `preprocess.orientation` supports RAS only.
    step.expect(axcodes="RAS", as_closest_canonical=False)
    return {"orientation": "RAS"}


def _spacing(step: Step) -> Effect:
    step.drop("padding_mode", "align_corners", "lazy", "ensure_same_shape", "scale_extent", "recompute_affine")
    step.expect(diagonal=False, min_pixdim=None, max_pixdim=None)
    if (mode := step.mode("bilinear")) not in ("bilinear", 1):
        raise step.refusal(f"mode: {mode}")
    _after_normalising(step)
    pixdim = step.get("pixdim")
    return {"spacing": [float(edge) for edge in (pixdim if isinstance(pixdim, list) else [pixdim])]}


def _resize(step: Step) -> Effect:
    step.drop("align_corners", "anti_aliasing", "anti_aliasing_sigma", "lazy")
    step.expect(size_mode="all")
    if (mode := step.mode("area")) == "area":
        step.note("averages areas, this project interpolates linearly with anti-aliasing, so images differ slightly")
    elif mode not in ("linear", "bilinear", "trilinear", 1):
        raise step.refusal(f"mode: {mode}")
    _after_normalising(step)
    size = step.get("spatial_size")
    return {"resize": size if isinstance(size, list) else [size]}


def _after_normalising(step: Step) -> None:
    if "normalise" in step.found:
        step.note("resamples normalised images, this project normalises resampled images, so intensities may differ")


def _normalise(step: Step) -> Effect:
    step.expect(nonzero=False)
    subtrahend, divisor = step.get("subtrahend"), step.get("divisor")
    by_channel = step.get("channel_wise", False)
    # Without a channel-wise mean, MONAI normalises all channels together; `zscore` is per channel.
    if subtrahend is None and divisor is None:
        if step.channels > 1 and not by_channel:
            raise step.refusal(f"channel_wise: false over {step.channels} channels")
        return {"normalise": "zscore"}
    if isinstance(subtrahend, int | float) and isinstance(divisor, int | float) and divisor > 0:
        # (x - mean) / width maps mean to 0 and mean + width to 1.
        return {"normalise": _range(subtrahend, subtrahend + divisor, 0, 1, False)}
    if by_channel and isinstance(subtrahend, list) and isinstance(divisor, list) and min(divisor) > 0:
        pairs = zip(subtrahend, divisor, strict=True)
        return {"normalise": [_range(mean, mean + width, 0, 1, False) for mean, width in pairs]}
    raise step.refusal("these subtrahend and divisor")


def _scale(step: Step) -> Effect:
    step.expect(minv=0.0, maxv=1.0, factor=None)
    if not step.get("channel_wise", False) and step.channels > 1:
        raise step.refusal(f"channel_wise: false over {step.channels} channels")
    return {"normalise": "minmax"}


def _scale_range(step: Step) -> Effect:
    low, high = step.get("a_min"), step.get("a_max")
    bottom, top = step.get("b_min"), step.get("b_max")
    numbers = all(isinstance(one, int | float) for one in (low, high)) and low < high
    if not numbers or (bottom is None) != (top is None) or (bottom is not None and bottom >= top):
        raise step.refusal(f"the range {low} to {high}, to {bottom} and {top}")
    clip = bool(step.get("clip", False)) and bottom is not None
    # Without b_min and b_max MONAI maps to 0 to 1, and does not clip.
    bottom, top = (0, 1) if bottom is None else (bottom, top)
    return {"normalise": _range(low, high, bottom, top, clip)}


def _range(low: float, high: float, bottom: float, top: float, clip: bool) -> dict[str, Any]:
    return {"range": [float(low), float(high)], "to": [float(bottom), float(top)], "clip": clip}


def _activations(step: Step) -> Effect:
    step.expect(other=None)
    step.drop("dim")
    sigmoid, softmax = bool(step.get("sigmoid", False)), bool(step.get("softmax", False))
    if sigmoid and softmax:
        raise step.refusal("both sigmoid and softmax")
    return {"head": "sigmoid"} if sigmoid else {"head": "softmax"} if softmax else {}


def _discrete(step: Step) -> Effect:
    step.expect(to_onehot=None, rounding=None, logit_thresh=0.5)
    step.drop("dim", "keepdim")
    argmax, threshold = bool(step.get("argmax", False)), step.get("threshold")
    if threshold is not None and (argmax or threshold != 0.5):
        raise step.refusal(f"threshold: {threshold}")
    if threshold is not None and step.found.get("head") != "sigmoid":
        # A threshold of 0.5 on logits is not a threshold of 0.5 on probabilities, which is 0 on logits.
        raise step.refusal(f"threshold: {threshold} and no Activations with sigmoid: true before it")
    return {"head": "softmax"} if argmax else {}


BEFORE: dict[str, Callable[[Step], Effect]] = {
    "LoadImage": _load,
    "EnsureChannelFirst": _nothing,
    "EnsureType": _nothing,
    "ToTensor": _nothing,
    "ToDevice": _nothing,
    "CastToType": _nothing,
    "Identity": _nothing,
    "Orientation": _orientation,
    "Spacing": _spacing,
    "Resize": _resize,
    "NormalizeIntensity": _normalise,
    "ScaleIntensity": _scale,
    "ScaleIntensityRange": _scale_range,
}
"""Known preprocessing, by the name of the transform without the ending of dictionary transforms (`d`)."""

AFTER: dict[str, Callable[[Step], Effect]] = {
    "Activations": _activations,
    "AsDiscrete": _discrete,
    **dict.fromkeys(("Invert", "SaveImage", "EnsureType", "ToTensor", "ToDevice", "Identity"), _nothing),
}
"""Known postprocessing. This project has its own code to return to the image's grid and to save."""


def effects(
    config: Config,
    block: str,
    key: str,
    known: Mapping[str, Callable[[Step], Effect]],
    channels: int,
    ignore: tuple[str, ...],
) -> tuple[Effect, list[str]]:
    """Effect of a block's transforms on the value under `key`, and notes. Both are empty for a missing block.

    Raises `BadInput` for a transform, or a use of a transform, that is neither known nor ignored, for two transforms
    that set the same knob, and for a block whose transforms all act on other keys.
    """
    found: Effect = {}
    notes: list[str] = []
    others: set[str] = set()
    counted = False
    if block in ignore:
        return found, notes
    for at, target, arguments in _listed(config, block):
        name = _plain_name(target, known)
        if name in ignore or target in ignore:
            continue
        if name not in known:
            raise BadInput(
                f"{config.path}: {at}: transform '{target}' is not known here; known are {', '.join(known)}; list "
                f"'{target}' under base.ignore if the network can do without, which changes its input or output"
            )
        if known[name] is _nothing:
            continue
        keys = config.plain(arguments.get("keys", key), f"{at}::keys")
        keys = keys if isinstance(keys, list) else [keys]
        if key not in keys:
            others |= set(keys)
            continue
        counted = True
        step = Step(config, at, target, arguments, channels, found, keys.index(key), notes)
        effect = known[name](step)
        step.finish()
        for knob, value in effect.items():
            if knob in found and (knob != "head" or found[knob] != value):
                raise BadInput(f"{config.path}: {at}: '{target}' sets {knob} a second time, which is not known here")
            # This project reorients before it resamples, so unequal edges would belong to other axes than in MONAI.
            if knob == "orientation" and len(set(found.get("spacing", [0]))) > 1:
                raise BadInput(f"{config.path}: {at}: '{target}' after Spacing with unequal edges is not known here")
        found |= effect
    if others and not counted:
        raise BadInput(
            f"{config.path}: {block}: expected transforms of the key '{key}', found {', '.join(sorted(others))}; "
            f"rename the key, or list '{block}' under base.ignore, which changes the network's input or output"
        )
    return found, notes


def _listed(config: Config, block: str) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Place, class and arguments of every transform of a block that is not disabled."""
    value, at = config.content.get(block), block
    if value is None:
        return []
    if isinstance(value, dict) and class_name(value.get("_target_")) == "Compose":
        value, at = value.get("transforms"), f"{block}::transforms"
    if isinstance(value, str) and value.startswith("@") and value[1:] in config.content:
        value, at = config.content[value[1:]], value[1:]
    if not isinstance(value, list) or not all(isinstance(one, dict) and "_target_" in one for one in value):
        raise BadInput(
            f"{config.path}: {at}: expected a list of transforms, each with its `_target_`, found {value!r:.80}; list "
            f"'{block}' under base.ignore to leave it out, which changes the network's input or output"
        )
    steps = [(f"{at}::{place}", one) for place, one in enumerate(value)]
    return [
        (place, class_name(config.plain(one["_target_"], f"{place}::_target_")), one)
        for place, one in steps
        if not config.plain(one.get("_disabled_", False), f"{place}::_disabled_")
    ]


def _plain_name(target: str, known: Mapping[str, Any]) -> str:
    """Name of a transform without the ending of dictionary transforms, if the rest is known."""
    return next((target.removesuffix(end) for end in ("Dict", "d", "D") if target.removesuffix(end) in known), target)
