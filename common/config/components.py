"""Reads settings that choose a component by its name: `loss: bce`, or `loss: {name: bce, negatives: 8}`.

Which settings there are depends on the name, and is looked up in the registry, so that other packages' components are read and
checked like ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, SerializeAsAny
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from tessera.common.errors import ConfigError
from tessera.common.registry.backbones import BACKBONES
from tessera.common.registry.component import ComponentSettings
from tessera.common.registry.content_encoders import CONTENT_ENCODERS
from tessera.common.registry.defences import DEFENCES
from tessera.common.registry.losses import LOSSES
from tessera.common.registry.methods import METHODS
from tessera.common.registry.registry import Registry, nearest
from tessera.common.registry.strategies import STRATEGIES


@dataclass(frozen=True)
class Component:
    """Marks a setting that chooses a component: from which registry, and what it is without a name."""

    registry: Registry[Any]
    default: str

    def model(self, name: Any) -> type[ComponentSettings]:
        """The settings that a component has. Raises `ValueError` for a name that nobody offers."""
        try:
            found: type[ComponentSettings] = self.registry[str(name)].settings
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return found

    def read(self, value: Any, lenient: bool = False) -> ComponentSettings:
        """Settings from a name, a mapping or settings. Raises `ValueError` for an unknown name, or setting unless `lenient`."""
        content = self.written(value.model_dump() if isinstance(value, ComponentSettings) else value)
        if not isinstance(content, Mapping):
            raise ValueError(f"write the name of a {self.registry.kind}, or {{name: ..., SETTING: VALUE}}")
        model = self.model(content["name"])
        strange = [key for key in content if key not in model.model_fields]
        if strange and not lenient:
            raise ValueError(self._has_no(str(content["name"]), model, str(strange[0])))
        return model.model_validate({key: one for key, one in content.items() if key not in strange})

    def written(self, value: Any) -> Any:
        """A name as a mapping with this name, and a mapping without one as the default's; anything else as it is."""
        if isinstance(value, str):
            return {"name": value}
        return {"name": self.default, **value} if isinstance(value, Mapping) else value

    def merged(self, below: Any, above: Any) -> Any:
        """Lay settings over others. Under another name, what that component has no setting for is left behind."""
        base = self.written(below)
        if not isinstance(base, Mapping) or not isinstance(above, str | Mapping):
            return above
        top = {"name": above} if isinstance(above, str) else above
        name = top.get("name", base["name"])
        if name != base["name"]:
            try:
                base = {key: value for key, value in base.items() if key in self.model(name).model_fields}
            except ValueError:  # said better where the settings are read
                base = {}
        return {**base, **top}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def read(value: Any, info: core_schema.ValidationInfo) -> ComponentSettings:
            return self.read(value, bool(info.context and info.context.get("lenient")))

        return core_schema.with_info_before_validator_function(read, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Either a name, or one mapping for each component: its constant name and its own settings."""
        names = list(self.registry)
        variants = [self._variant(name, handler) for name in names]
        return {"oneOf": [{"enum": names}, *variants]}

    def _variant(self, name: str, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        model = self.registry[name].settings
        own = handler.resolve_ref_schema(handler(model.__pydantic_core_schema__))
        properties = {key: dict(value) for key, value in own["properties"].items() if key != "name"}
        for field in properties.values():
            field.pop("title", None)
        found: JsonSchemaValue = {"type": "object", "additionalProperties": False, "title": name}
        if model is not ComponentSettings and model.__doc__:
            found["description"] = model.__doc__
        found["properties"] = {"name": {"const": name}} | properties
        return found if name == self.default else found | {"required": ["name"]}

    def _has_no(self, name: str, model: type[ComponentSettings], key: str) -> str:
        owners = [one for one, spec in self.registry.items() if key in spec.settings.model_fields]
        if owners:
            return f"{name} has no setting {key!r}; {' and '.join(owners)} {'has' if len(owners) == 1 else 'have'}"
        own = [field for field in model.model_fields if field != "name"]
        near = f"; the nearest known one is {nearest(key, own)!r}" if own else ", nor any other"
        return f"{name} has no setting {key!r}{near}"


Backbone = Annotated[SerializeAsAny[ComponentSettings], Component(BACKBONES, "history")]
Loss = Annotated[SerializeAsAny[ComponentSettings], Component(LOSSES, "softmax")]
Method = Annotated[SerializeAsAny[ComponentSettings], Component(METHODS, "fedmosaic")]
Strategy = Annotated[SerializeAsAny[ComponentSettings], Component(STRATEGIES, "fedvlr")]
ContentEncoder = Annotated[SerializeAsAny[ComponentSettings], Component(CONTENT_ENCODERS, "frozen")]
Defence = Annotated[SerializeAsAny[ComponentSettings], Component(DEFENCES, "none")]


def component_of(field: FieldInfo) -> Component | None:
    """The component that a setting chooses, where it chooses one."""
    return next((mark for mark in field.metadata if isinstance(mark, Component)), None)
