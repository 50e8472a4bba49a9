"""What JSON Schema validators find, in the words of somebody who wrote the document: what, and what to write."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from mikrom_reconcile.core.model.documents import Diagnostic, Pointer, SpecDocument
from mikrom_reconcile.core.model.encoding import canonical_json
from mikrom_reconcile.core.parsing.yaml_words import code_points, shortened, shown
from mikrom_reconcile.times_and_sizes import SPECS

Schemas = Mapping[str, str]  # kind to the text of its JSON Schema


def schema_mistakes(document: SpecDocument, schema: str) -> Iterator[Diagnostic]:
    """What is wrong with a document by the schema of its kind. Each value is reported once."""
    if not _compiled_validator(schema).is_valid(document.body):
        found = _explained(_explaining_validator(schema).iter_errors(document.body), document)
        yield next(found, Diagnostic(document, (), "the document does not obey its schema"))
        yield from found


@cache
def _compiled_validator(schema: str) -> Any:
    import jsonschema_rs  # noqa: PLC0415 - 27 ms that `get vms` need not pay

    return jsonschema_rs.Draft202012Validator(json.loads(schema))


@cache
def _explaining_validator(schema: str) -> Any:
    """A validator whose errors say most. Slow: for documents that were refused already."""
    from jsonschema import Draft202012Validator, ValidationError, validators  # noqa: PLC0415 - 85 ms

    def unique(_checker: Any, _unique: bool, value: Any, _schema: Any) -> Iterator[Any]:  # noqa: FBT001
        """In linear time; jsonschema compares each with each where they cannot be sorted."""
        if isinstance(value, list) and len(set(map(canonical_json, value))) < len(value):
            yield ValidationError("has non-unique elements")

    strict = schema.replace('$"', '\\\\Z"')  # in JSON Schema, $ is the very end
    return validators.extend(Draft202012Validator, {"uniqueItems": unique})(json.loads(strict))  # type: ignore[no-untyped-call]


def _explained(errors: Iterable[Any], document: SpecDocument) -> Iterator[Diagnostic]:
    places: set[Pointer] = set()
    for error in errors:
        pointer, rule, rules, found = tuple(error.absolute_path), error.validator, error.schema, error.instance
        where = ".".join(map(str, pointer)) or "the document"
        if rule == "additionalProperties":
            known = tuple(rules.get("properties", ()))
            for key in [key for key in found if key not in known]:
                message = f"unknown key {shown(key)} in {where}"
                yield Diagnostic(document, (*pointer, key), message, nearest(key, known), key=True)
        elif "propertyNames" in error.absolute_schema_path:
            message = f"{where} cannot have the key {shown(found)}"
            hint = nearest(found, rules["enum"]) if rule == "enum" else _pattern_hint(rules)
            yield Diagnostic(document, (*pointer, found), message, hint, key=True)
        elif pointer not in places:
            places.add(pointer)
            message, hint = _missing(where, found, rules) if rule == "required" else _message(rule, where, found, rules)
            if message:
                yield Diagnostic(document, pointer, message, hint)


def _missing(where: str, found: Any, rules: Any) -> tuple[str, str]:
    """Required keys that are missing. A misspelt one is reported as an unknown key already."""
    misspelt = {close for key in found if key not in rules["properties"] for close in _close(key, rules["required"])}
    keys = [key for key in rules["required"] if key not in found and key not in misspelt]
    if not keys:
        return "", ""
    entry = rules["properties"].get(keys[0], {})
    hint = f"write {keys[0]}: {entry['const']}" if "const" in entry else entry.get("description", "")
    return f"{' and '.join(keys)} {'are' if len(keys) > 1 else 'is'} missing in {where}", hint


def _message(rule: str, where: str, found: Any, rules: Any) -> tuple[str, str]:
    message, hint = f"{where} cannot be {describe_value(found)}", rules.get("description", "")
    match rule:
        case "type":
            types = rules["type"] if isinstance(rules["type"], list) else [rules["type"]]
            wanted = " or ".join(_TYPES[word] for word in types if word != "null")
            message = f"{where} must be {wanted}, not {describe_value(found)}"
        case "enum":
            hint = nearest(str(found), tuple(str(word) for word in rules["enum"] if word is not None))
        case "const":
            hint = f"write {rules['const']}"
        case "pattern":
            hint = _pattern_hint(rules)
        case "minimum" | "maximum":
            low, high = rules.get("minimum"), rules.get("maximum")
            limits = f"from {low} up" if high is None else f"from {low} to {high}"
            message, hint = f"{where} is {found}; it must be {limits}", ""
        case "maxLength":
            message = f"{where} has {len(found)} characters; at most {rules['maxLength']} are allowed"
            hint = ""
        case "uniqueItems":
            compared = found[: SPECS.compared_words]
            twice = next((item for number, item in enumerate(compared) if item in compared[:number]), None)
            message = f"{where} has {'something' if twice is None else describe_value(twice)} twice"
            hint = "" if twice is None else "remove one of the two"
        case "minProperties" | "minItems":
            message, hint = f"{where} is empty", ""
        case _:
            pass
    return message, hint


def _pattern_hint(rules: Any) -> str:
    pattern: str = rules["pattern"].replace("\\Z", "$")
    return _PATTERNS.get(pattern, f"it must match {pattern}")


_TYPES = {
    "object": "a mapping", "array": "a list", "string": "text", "integer": "a whole number", "number": "a number",
    "boolean": "true or false", "null": "empty",
}  # fmt: skip
_PINNED = "registry/name@sha256: and 64 hexadecimal digits, which `mikrom image pin NAME` writes for a tag"
_PATTERNS = {
    "^[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?$": "up to 48 of a-z, 0-9 and '-', a letter or digit at both ends",
    "^(100|[0-9]{1,2})%$": "a number of VMs, or a percentage from 0% to 100%",
    "^(100|[1-9][0-9]?)%$": "a number of VMs, or a percentage from 1% to 100%",
    "^(name|reverse)$": "name, reverse, or a list of VMs and hosts",
    "^[0-9]{1,6}(ms|s|m|h|d)$": "a whole number and a unit: 250ms, 10s, 5m, 1h, 2d",
    "^[^ ]+( +[^ ]+){4}$": "minute hour day-of-month month day-of-week, such as 0 9 * * mon-fri",
    "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9]{2})?(Z|[+-][0-9]{2}:[0-9]{2})$": (
        "a time and its distance from UTC: 2026-12-27T08:00+01:00, or 2026-12-27T07:00Z"
    ),
    "^[0-9a-f]{64}$": "64 hexadecimal digits, as sha256sum prints them",
    "^(file:///|https://)[!-~]+$": "file:///path or https://host/path",
    "^file:///[!-~]+$": "file:///path",
    "^[A-Za-z0-9._:/\\[\\]-]{1,255}@sha256:[0-9a-f]{64}$": _PINNED,
    "^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$": "up to 64 of a-z, 0-9, '.', '_' and '-', a letter or digit at both ends",
    "^[ -~]*$": "printable ASCII only",
    "^[A-Za-z_][A-Za-z0-9_]*$": "letters, digits and '_', no digit first",
    "^host(\\.[A-Za-z_][A-Za-z0-9_]*)+$": "a variable of the host, such as host.rack",
    "^\\$\\{[^}]+\\}$": "a whole number, or a ${variable}",
    "^([0-9]{1,6}(ms|s|m|h|d)|\\$\\{[^}]+\\})$": "a whole number and a unit: 250ms, 10s, 5m, 1h, 2d",
    "\\$\\{index(:0?[1-9][0-9]?d)?\\}": "${index} or ${index:03d} must be in it",
}


def expectation(what: str) -> str:
    """What msgspec says of a value that it refuses, as what the value must be."""
    if "missing" in what:
        return "it must be given"
    if regex := re.search("matching regex '(.*)'", what):
        return f"it must be {_PATTERNS.get(regex[1], regex[1])}"
    if limit := re.search("(<=|>=|length <=) ([0-9]+)", what):
        return f"it must be {_LIMITS[limit[1]].format(limit[2])}"
    wanted = re.findall("`([a-z]+)", what.partition(", got")[0])
    return f"it must be {' or '.join(_TYPES.get(_OF_MSGSPEC.get(word, word), word) for word in wanted)}"


_LIMITS = {"<=": "at most {}", ">=": "at least {}", "length <=": "at most {} characters long"}
_OF_MSGSPEC = {"int": "integer", "str": "string", "bool": "boolean", "float": "number"}


def nearest(word: str, known: Sequence[str]) -> str:
    """A hint: the known word that `word` may have been meant for, else what is known."""
    if close := _close(word, known):
        return f"did you mean {close[0]}?"
    more = f", and {len(known) - SPECS.hinted_words} more" if len(known) > SPECS.hinted_words else ""
    return f"known are {', '.join(known[: SPECS.hinted_words])}{more}" if known else ""


def _close(word: str, known: Sequence[str]) -> list[str]:
    if len(known) > SPECS.compared_words:
        known = [other for other in known if other[:1] == word[:1]][: SPECS.compared_words]
    return difflib.get_close_matches(word, known, n=1)


def describe_value(value: Any) -> str:
    """A value of the specs inside a message, cut where it is long."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if not isinstance(value, str):
        return json.dumps(value)
    return json.dumps(shortened(value), ensure_ascii=False) + code_points(value)
