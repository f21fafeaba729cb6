"""Reading YAML without its silent traps: keys that stand twice, `1e-5` taken for text, files that never end."""

import re
from pathlib import Path
from typing import Any

import yaml

from r2q.config.base import ConfigError
from r2q.failures import one_line

MOST_BYTES = 16 << 20
MOST_VALUES = 1_000_000
DEEPEST = 50


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, which YAML readers resolve by silently forgetting the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"a key must be a word, in line {key_node.start_mark.line + 1}")
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ConfigError(f"{key} stands twice, the second time in line {key_node.start_mark.line + 1}")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(  # YAML 1.1, which PyYAML reads, wants a dot and a sign: 1.0e-5
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML (or JSON) file, as it stands. Raises ConfigError with the file and the line."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{path}: is no config: it has more than {MOST_BYTES >> 20} MiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # UTF-16 without a mark has nothing else that would be wrong
        raise ConfigError(f"{path}: is not a text file in UTF-8")
    try:
        data = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a mapping of keys, such as run: and models:")
    return data


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises ConfigError: no YAML, a value that contains itself, too deep or too many."""
    try:
        loader = _Loader(text)  # refuses control characters at once
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, ())
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {one_line(error)}") from None
    except RecursionError:
        raise ConfigError(f"is nested deeper than {DEEPEST} levels") from None
    except (ValueError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"holds a value that cannot be read ({error})") from None


def _count(node: yaml.Node, counts: dict[int, int], above: tuple[int, ...]) -> int:
    """Values below a node, an alias counted wherever it stands; ConfigError for cycles, and for too deep or many."""
    place = id(node)
    line = f"in line {node.start_mark.line + 1}"
    if place in above:
        raise ConfigError(f"the value of an anchor contains itself, {line}")
    if len(above) >= DEEPEST:
        raise ConfigError(f"is nested deeper than {DEEPEST} levels, {line}")
    if place not in counts:
        parts = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        counts[place] = 1 + sum(_count(part, counts, (*above, place)) for part in parts)
        if counts[place] > MOST_VALUES:
            raise ConfigError(f"has more than {MOST_VALUES} values, aliases resolved, {line}")
    return counts[place]
