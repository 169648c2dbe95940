"""Binding a recipe to its checkpoints: groups of lanes with their parameters, and the checks a method asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

from raymerge.checkpoint.nouns import Checkpoint
from raymerge.errors import Problem
from raymerge.methods.declaration import Base, Method, Missing, Parameter
from raymerge.planning.parameters import Level, ParameterTable, Problems, missing_value
from raymerge.planning.sites import Group, Lane, is_under
from raymerge.planning.stack import Anatomy, dissect
from raymerge.recipe.nouns import ModelReference, Module, Recipe, Settings, Slice, Source
from raymerge.recipe.settings import varies_over_layers

WHOLE_MODEL = "default"  # the name recipes give the only module of a model that has no parts


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundModule:
    """A module whose models could all be opened. `groups` is one group of whole models, or one group per slice."""

    groups: tuple[Group, ...]
    is_sliced: bool


@dataclass(slots=True)
class Binder:
    """Binds modules; `opened` lacks the models that could not be opened (their problems are known already).

    `doubts`, of values that parameters resolve to, are complete once every tensor's are.
    """

    recipe: Recipe
    method: Method
    opened: Mapping[ModelReference, Checkpoint]
    problems: Problems
    doubts: Problems = field(default_factory=Problems)
    _anatomies: dict[ModelReference, Anatomy] = field(default_factory=dict)

    def modules(self) -> tuple[BoundModule, ...]:
        self._check_base()
        bound = (self._module(module) for module in self.recipe.modules)
        return tuple(module for module in bound if module is not None)

    def anatomy(self, model: ModelReference) -> Anatomy:
        if model not in self._anatomies:
            checkpoint = self.opened[model]
            self._anatomies[model] = dissect(checkpoint.tensors, checkpoint.config)
        return self._anatomies[model]

    def _check_base(self) -> None:
        needs = self.method.base in (Base.REQUIRED, Base.FIRST)
        slices = [each for module in self.recipe.modules for each in module.slices]
        everywhere = bool(slices) and all(each.base_model is not None for each in slices)
        if needs and self.recipe.base_model is None and not everywhere:
            self.problems.add(
                Problem(
                    subject="base_model",
                    message=f"{self.method.name} needs a base model, none is set",
                    remedy="add `base_model: MODEL`",
                    line=self.recipe.lines.get("merge_method"),
                )
            )

    def _module(self, module: Module) -> BoundModule | None:
        if module.prefix == WHOLE_MODEL and not self._has_tensors_under(module.prefix):
            module = replace(module, prefix="")
        self._check_prefix(module)
        if module.models:
            group = self._group(module, list(module.models), module.parameters, None, module.line)
            return BoundModule(groups=(group,), is_sliced=False) if group is not None else None
        groups = [self._slice(module, each) for each in module.slices]
        whole = tuple(group for group in groups if group is not None)
        return BoundModule(groups=whole, is_sliced=True) if groups and len(whole) == len(groups) else None

    def _slice(self, module: Module, each: Slice) -> Group | None:
        return self._group(module, list(each.sources), module.parameters, each, each.line)

    def _group(
        self, module: Module, sources: list[Source], settings: Settings, each: Slice | None, line: int | None
    ) -> Group | None:
        base_model = (each.base_model if each is not None else None) or self.recipe.base_model
        if each is None and base_model is not None and all(source.model != base_model for source in sources):
            sources.append(Source(model=base_model, line=self.recipe.lines.get("base_model")))
        base_at = next((i for i, source in enumerate(sources) if source.model == base_model), None)
        if each is not None and base_at is None and base_model is not None and self._keeps_base_apart_or_first():
            self.problems.add(
                Problem(
                    subject=f"base_model {base_model}",
                    message="is not among the sources of this slice",
                    remedy="list it as a source with its layer_range",
                    line=line,
                )
            )
            return None
        apart = base_at is not None and self.method.base in (Base.REQUIRED, Base.OPTIONAL)
        if base_at is not None and self.method.base is Base.FIRST:
            sources.insert(0, sources.pop(base_at))
        merging = [source for i, source in enumerate(sources) if not (apart and i == base_at)]
        outer = (each.parameters,) if each is not None else ()
        shared = (*outer, settings, self.recipe.parameters)
        self._check_required(merging, shared)
        self._check_count(merging, line)
        lanes = [self._lane(source, module.prefix) for source in sources]
        if not merging or any(lane is None for lane in lanes):
            return None
        ready = [lane for lane in lanes if lane is not None]
        base = ready.pop(base_at) if apart and base_at is not None else None
        table = ParameterTable(
            method=self.method,
            shared_levels=shared,
            each_levels=tuple((source.parameters, *shared) for source in merging),
            labels=tuple(str(source.model) for source in merging),
            problems=self.problems,
            doubts=self.doubts,
        )
        leads = base_at is not None and self.method.base is Base.INPUT
        group = Group(
            inputs=tuple(ready),
            base=base,
            table=table,
            prefix=module.prefix,
            leader_at=base_at if leads and base_at is not None else 0,
        )
        self._check_gradients(group)
        return group

    def _check_prefix(self, module: Module) -> None:
        if not self.opened or not module.prefix or self._has_tensors_under(module.prefix):
            return
        self.problems.add(
            Problem(
                subject=f"modules.{module.prefix}",
                message="no tensor's name begins so: the module would do nothing",
                remedy="module names are beginnings of tensor names, such as `model.language_model`",
                line=module.line,
            )
        )

    def _has_tensors_under(self, prefix: str) -> bool:
        return any(is_under(name, prefix) for each in self.opened.values() for name in each.tensors)

    def _check_required(self, merging: list[Source], shared: tuple[Settings, ...]) -> None:
        """Required parameters that no level mentions: known without any tensor, so also where a model is not there."""
        for parameter in self.method.parameters:
            if not isinstance(parameter.default, Missing):
                continue
            if not parameter.per_input:
                if not any(parameter.name in level for level in shared):
                    self._complain_missing(parameter, "", self.recipe.lines.get("merge_method"))
                continue
            for source in merging:
                if not any(parameter.name in level for level in (source.parameters, *shared)):
                    self._complain_missing(parameter, str(source.model), source.line)

    def _check_gradients(self, group: Group) -> None:
        """Values over layers where no layers are known: every tensor would take the first value without a word."""
        if group.leader.anatomy.stacks:
            return
        for level in chain(group.table.shared_levels, *group.table.each_levels):
            for name, setting in level.items():
                if self.method.parameter(name) is not None and varies_over_layers(setting):
                    self.problems.add(
                        Problem(
                            subject=name,
                            message=f"varies over layers, but {group.leader.label} has no numbered layers that its "
                            "config.json counts",
                            remedy="set one value, or one for each filter of tensor names",
                            line=setting.line,
                        )
                    )

    def _complain_missing(self, parameter: Parameter, model: str, line: int | None) -> None:
        problem = missing_value(parameter, model, "any tensor", line)
        self.problems.add_once((model, parameter.name), problem)

    def _keeps_base_apart_or_first(self) -> bool:
        return self.method.base in (Base.REQUIRED, Base.FIRST)

    def _lane(self, source: Source, prefix: str) -> Lane | None:
        checkpoint = self.opened.get(source.model)
        if checkpoint is None:
            return None
        lane = Lane(
            label=checkpoint.reference,
            checkpoint=checkpoint,
            anatomy=self.anatomy(source.model),
            prefix=prefix,
            layer_range=source.layer_range,
            line=source.line,
        )
        return lane if self._range_fits(lane) else None

    def _range_fits(self, lane: Lane) -> bool:
        stacks = lane.main_stacks
        if lane.layer_range is None or len(stacks) != 1:
            return True
        first, end = lane.layer_range
        if end <= stacks[0].layer_count:
            return True
        self.problems.add(
            Problem(
                subject=f"layer_range of {lane.label}",
                message=f"found [{first}, {end}], but the model has {stacks[0].layer_count} layers",
                remedy=f"the end is exclusive and at most {stacks[0].layer_count}",
                line=lane.line,
            )
        )
        return False

    def _check_count(self, merging: list[Source], line: int | None) -> None:
        least, most = self.method.min_inputs, self.method.max_inputs
        found = len(merging)
        if found >= least and (most is None or found <= most):
            return
        expected = f"{least}" if most == least else (f"at least {least}" if most is None else f"{least} to {most}")
        beside = " beside the base" if self.method.base is Base.REQUIRED else ""
        self.problems.add(
            Problem(
                subject=self.method.name,
                message=f"takes {expected} model{'s' if expected != '1' else ''}{beside}, found {found}",
                remedy="raymerge methods lists what each method takes",
                line=line if line is not None else self.recipe.lines.get("merge_method"),
            )
        )


def parameter_levels(recipe: Recipe) -> Iterator[Level]:
    """Every place of a recipe where parameters can stand, with the path a message names it by."""
    yield Level(path="parameters", settings=recipe.parameters)
    for module in recipe.modules:
        head = f"modules.{module.prefix}." if module.prefix else ""
        if head:
            yield Level(path=f"{head}parameters", settings=module.parameters)
        for i, source in enumerate(module.models):
            yield Level(path=f"{head}models[{i}].parameters", settings=source.parameters, of_source=True)
        for i, each in enumerate(module.slices):
            yield Level(path=f"{head}slices[{i}].parameters", settings=each.parameters)
            for j, source in enumerate(each.sources):
                path = f"{head}slices[{i}].sources[{j}].parameters"
                yield Level(path=path, settings=source.parameters, of_source=True)


def model_references(recipe: Recipe) -> tuple[ModelReference, ...]:
    """Every model a recipe names, once, in the order of the file; a base that is listed nowhere comes last."""
    named = [source.model for module in recipe.modules for source in module.models]
    named += [source.model for module in recipe.modules for each in module.slices for source in each.sources]
    bases = [each.base_model for module in recipe.modules for each in module.slices] + [recipe.base_model]
    named += [base for base in bases if base is not None]
    return tuple(dict.fromkeys(named))
