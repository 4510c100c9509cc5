"""From a subnet to a latency: compile it for the device, measure some subnets, fit the predictor, judge it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.config import construct
from nas.tasks.cache import content_key
from nas.workbench import Workbench
from search_spaces.subnet import SubnetConfig

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

    from latency_models.active import LearningPoint
    from latency_models.backends.base import Run
    from latency_models.backends.graph_template import GraphTemplate
    from latency_models.predictors import CalibratedPredictor
    from latency_models.profile import DeviceProfile, Header
    from latency_models.subnet_compiler import SubnetCompiler
    from latency_models.transfer import Source
    from nas.judging import FittedPredictor


class DeviceBench:
    """Everything that a workbench does with its device.

    Args:
        bench: The configuration's stages.
    """

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.settings = bench.config["profile"]
        self.curve: list[LearningPoint] = []

    # -- running subnets --------------------------------------------------------------------------------------------

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """Inputs of the workload's sizes."""
        return self.bench.task.example_inputs(self.bench.workload)

    @cached_property
    def compiler(self) -> SubnetCompiler:
        """What makes subnets run on the device; for graphs, the teacher's has been exported once."""
        from latency_models.subnet_compiler import SubnetCompiler

        bench, task = self.bench, self.bench.task
        made = SubnetCompiler(
            bench.device, bench.supernet, self.inputs, task.output_names,
            deployable=task.deployable, templates=bench.cache / "graphs",
        )  # fmt: skip
        if not self.takes_module:
            self._template(made)
        return made

    def _template(self, compiler: SubnetCompiler) -> GraphTemplate | None:
        """The exported teacher; exporting it takes up to some minutes, so it is told, once."""
        if "template" in vars(compiler):
            return compiler.template
        if reused := compiler.find_template():
            self.bench.say(f"Reusing the teacher's graph {compiler.template_path}.")
        else:
            self.bench.say("Exporting the teacher's graph, from which every subnet's is cut ...")
        with self.bench.stage("export template", reused=reused):
            return compiler.template

    @property
    def takes_module(self) -> bool:
        """Whether the backend takes a torch module (else an ONNX graph)."""
        from latency_models.backends.base import backend_entry

        return backend_entry(self.bench.device.backend).takes == "module"

    def graph(self, subnet: SubnetConfig) -> Any:
        """A subnet's ONNX graph, cut out of the teacher's."""
        return self.compiler.graph(subnet)

    def student_graph(self, model: nn.Module, subnet: SubnetConfig) -> ModelProto | None:
        """The fp32 graph of an extracted model, trained or not, cut out of the teacher's; None: it must be exported."""
        from latency_models.backends.graph_students import student_graph
        from latency_models.backends.graph_template import GraphTemplateError

        if subnet.hidden_size != self.bench.space.shape.hidden_size:  # A narrower stream is another graph.
            return None
        if (template := self._template(self.compiler)) is None:
            return None
        try:
            return student_graph(template, self.bench.task.deployable(model), subnet.kept)
        except GraphTemplateError as error:
            self.bench.say(f"{error} The model is exported instead, which takes longer.")
            return None

    def job(self, subnet: SubnetConfig) -> Callable[[], Run]:
        """What compiles a subnet when its turn comes."""
        return self.compiler.job(subnet)

    # -- profile ----------------------------------------------------------------------------------------------------

    @cached_property
    def judges(self) -> frozenset[SubnetConfig]:
        """Subnets that are measured to judge the predictor, which never learns from them in the judging."""
        from nas.profiling import held_out_subnets

        return held_out_subnets(self.bench.space, int(self.settings["held_out"]), self.bench.seed)

    @cached_property
    def few(self) -> list[SubnetConfig]:
        """The space's subnets where these are too few to learn from: all are measured, and nothing is predicted."""
        from nas.judging import MIN_TRAINING_ROWS
        from search_spaces.members import few_members

        return few_members(self.bench.space, MIN_TRAINING_ROWS)

    @cached_property
    def profile(self) -> DeviceProfile:
        """The measured subnets: what an earlier run left, and whatever is missing."""
        from latency_models.active import ActiveProfiling
        from latency_models.profile import DeviceProfile
        from latency_models.profiler import Profiler
        from nas.judging import MIN_TRAINING_ROWS
        from nas.profiling import Profiling, remember, remembered

        bench, settings = self.bench, self.settings
        if bench.device.transport != "local" or settings["import"] is not None:
            from nas.elsewhere import Elsewhere

            return Elsewhere(self).profile()
        profile = DeviceProfile.open(self.profile_path, self.header(self.fingerprint))
        for problem in profile.problems:
            bench.say(f"Left out: {problem}")
        stopping = {**settings, "seed": bench.seed, "predictor": self.predictor_name}
        if (curve := remembered(profile, stopping)) is not None and not profile.missing(self.judges):
            self.curve = curve
            bench.say(f"Reusing the profile {profile.path}: {len(profile.latest())} subnets.")
            with bench.stage("profile", reused=True):
                return profile
        least = 1 if self.few else MIN_TRAINING_ROWS
        if int(settings["num_subnets"]) < least:
            raise ValueError(f"`profile.num_subnets` must be at least {least}, but got {settings['num_subnets']}.")
        options = {"space": bench.space, "workload": bench.workload, "seed": bench.seed, **settings["active"]}
        options["start"] = min(options.get("start", ActiveProfiling.start), int(settings["num_subnets"]))
        options |= {"make": self._make, "exclude": self.judges}
        active: ActiveProfiling = construct(ActiveProfiling, options, "profile.active")
        compiler, minutes = self.compiler, settings["budget_minutes"]
        with bench.stage("profile"):
            deadline = time.monotonic() + 60 * float(minutes) if minutes else None
            protocol = {**settings["protocol"], "seed": bench.seed}
            profiler: Profiler = construct(Profiler, protocol, "profile.protocol")
            work = Profiling(bench, profile, compiler, active, profiler, deadline)
            work.run()
        self.curve = active.curve
        if not work.late:
            remember(profile, stopping, active.curve)
        return profile

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """What identifies the device; that of another machine was taken there."""
        local = self.bench.device.transport == "local"
        return self.bench.device.fingerprint() if local else self.profile.header.fingerprint

    @property
    def profile_path(self) -> Path:
        """Where the profile lies, by device, teacher, space and workload."""
        return self.path_of(self.fingerprint)

    @property
    def key(self) -> str:
        """What profiles of the same teacher, space and workload have in their names."""
        bench = self.bench
        return content_key([bench.teacher_hash, bench.space.fingerprint, str(bench.workload)])[:12]

    def path_of(self, fingerprint: Mapping[str, str]) -> Path:
        """Where the profile of a machine lies."""
        from latency_models.device import fingerprint_id

        bench = self.bench
        return bench.cache / "profiles" / f"{bench.device.name}-{fingerprint_id(fingerprint)}-{self.key}.jsonl"

    def header(self, fingerprint: Mapping[str, str]) -> Header:
        """What a profile's rows have in common."""
        from latency_models.profile import Header

        bench = self.bench
        return Header(
            device=bench.device.to_dict(),
            fingerprint=fingerprint,
            workload=bench.workload,
            space=bench.space.fingerprint,
            shape=bench.space.shape,
            teacher=bench.teacher_hash,
        )

    # -- predictor --------------------------------------------------------------------------------------------------

    @property
    def predictor_name(self) -> str:
        """Which predictor the configuration names.

        Raises:
            ValueError: There is none of that name.
        """
        from latency_models.predictors import PREDICTORS

        name = str(self.bench.config["predictor"]["name"])
        if name not in PREDICTORS:
            raise ValueError(f"`predictor.name` must be one of {', '.join(PREDICTORS)}, but got {name!r}.")
        return name

    @cached_property
    def siblings(self) -> dict[str, DeviceProfile]:
        """The profiles that other devices have of the same teacher, space and workload, by device."""
        from nas.profiling import sibling_profiles

        if not self.settings["transfer"] or self.predictor_name != "auto":
            return {}
        found = {}
        for profile in sibling_profiles(self.profile_path, self.header(self.fingerprint)):
            found[profile.path.stem.rpartition("-")[0]] = profile
            self.bench.say(
                f"Other devices' profiles: {profile.header.device['name']}, {len(profile.latest())} subnets."
            )
        return found

    @cached_property
    def _sources(self) -> dict[str, Source]:
        from latency_models.saved import fit_sources

        return fit_sources(self.siblings, self.bench.space.shape, self.bench.workload)

    def _make(self, quantity: str = "latency_ms") -> CalibratedPredictor:
        """A predictor to be fitted: the configured one, which borrows latencies of other devices where it can."""
        from latency_models.saved import make_predictor

        borrowed = self._sources if quantity == "latency_ms" else None
        return make_predictor(self.predictor_name, self.bench.seed, borrowed)

    @cached_property
    def fitted(self) -> FittedPredictor:
        """The predictor of latency, judged on held-out subnets, fitted to all of them, and saved beside the profile."""
        from latency_models.saved import describe, save_predictor
        from nas.judging import drift_text

        fitted = self.fit("latency_ms")
        if self.few:
            return fitted
        description = describe(
            fitted.predictor, self.profile, name=self.predictor_name, seed=self.bench.seed, sources=self.siblings
        )
        save_predictor(self.predictor_path, description)
        self.bench.notes.append(drift_text(self.profile, fitted.drift))
        return fitted

    @property
    def predictor_path(self) -> Path:
        """Where the latency predictor lies, as JSON."""
        return self.profile_path.with_suffix(".predictor.json")

    def fit(self, quantity: str) -> FittedPredictor:
        """The predictor of a quantity of the profile, judged on held-out subnets and then fitted to all.

        Raises:
            ValueError: Too few subnets are measured.
        """
        from nas.judging import judged_and_fitted, looked_up

        confidence = float(self.bench.config["objectives"]["confidence"])
        _ = self.profile  # A stage of its own, with the time that it takes.
        if self.few:
            return looked_up(self.profile, quantity)
        with self.bench.stage(f"fit {quantity}"):
            return judged_and_fitted(
                self.profile, self.judges, lambda: self._make(quantity), quantity=quantity, confidence=confidence
            )
