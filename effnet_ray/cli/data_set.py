"""The data set that a job uses: that of `--data`, packed first if need be, or the sample data."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from effnet_ray.cli.flags import HOME, Connect
from effnet_ray.cli.pack_view import ensure_page, print_data_set
from effnet_ray.cli.terminal import Terminal
from effnet_ray.placement import Placement

if TYPE_CHECKING:
    from effnet_ray.packing.listing import Map
    from effnet_ray.packing.on_demand import PackedSource


@dataclass(frozen=True)
class JobData:
    """The data of a job, before anything is packed."""

    uri: str
    """The packed data set."""
    source: "PackedSource | None" = None
    """What it is to be packed from; None if it is packed."""

    @property
    def read_from(self) -> str:
        """URI of what the job reads first."""
        if self.source and not self.source.on_hub:
            return self.source.source
        return self.uri

    def pack(self, terminal: Terminal, connect: Connect) -> str:
        """Pack the source, unless that is done; returns the URI of the data set."""
        if not self.source:
            return self.uri
        from effnet_ray.packing import report

        terminal.print(f"packing {self.source.source} into {self.uri}, once: later jobs use it")
        map_function = packing_map(self.source.source, self.uri, connect)
        manifest = self.source.make(terminal.packing_progress, map_function)
        built, page = report.load(self.uri), ensure_page(self.uri, terminal)
        print_data_set(terminal, manifest, built, self.uri, page=page)
        return self.uri


def find_data(data: str, runs: str, terminal: Terminal, *, name: str = "") -> JobData:
    """The data of a job: packed by the user or an earlier job, or to be packed.

    `data` is the flag's value, empty for the sample data. `name` is that of a run or sweep: one
    that exists keeps the data that it began with. Raises DatasetError.
    """
    if not data:
        return JobData(_sample_data(terminal))
    from effnet_ray.packing import on_demand

    if not on_demand.is_source(data):
        return JobData(data)
    earlier = _data_of_run(runs, name, data)
    if earlier:
        terminal.print(f"{name!r} goes on with its images, as packed in {earlier}")
        return JobData(earlier)
    source = on_demand.find(data, runs)
    if source.is_ready:
        terminal.print(f"using {source.uri}, packed from {data}, which has not changed")
        return JobData(source.uri)
    return JobData(source.uri, source)


def _data_of_run(runs: str, name: str, source: str) -> str:
    """URI of the data set of the run or sweep `name`, if it was packed from the source."""
    if not name:
        return ""
    from effnet_ray import storage
    from effnet_ray.packing import hub, on_demand
    from effnet_ray.sweep import sweep_record
    from effnet_ray.train import run_record

    uri = storage.join(storage.absolute(runs), name)
    run = run_record.load(uri)
    data = run.data if run else sweep_record.recorded_data(uri)
    source = source if hub.is_on_hub(source) else storage.absolute(source)
    return data if data and on_demand.source_of(data) == source else ""


def packing_map(source: str, out: str, connect: Connect) -> "Map":
    """Ray's map on the cluster that the job was submitted to; else the built-in one.

    Without a cluster, threads are enough. What was fetched from the hub is on this machine only.
    """
    from effnet_ray import storage
    from effnet_ray.packing import hub
    from effnet_ray.runtime import session, shared_folders

    if not session.is_submitted_job() or hub.is_on_hub(source):
        return map
    from effnet_ray.packing.ray_map import ray_map

    connect(Placement())
    shared_folders.check_reachable([storage.absolute(source), out])
    return ray_map


def _sample_data(terminal: Terminal) -> str:
    """URI of the sample data set, packed on first use."""
    from effnet_ray import storage
    from effnet_ray.data import manifest as manifests

    out = storage.absolute(f"{HOME}/sample-data")
    if not storage.exists(storage.join(out, manifests.NAME)):
        from effnet_ray.packing.sample import pack_sample

        terminal.print(f"packing the sample data (1,797 handwritten digits) into {out}")
        pack_sample(out)
    terminal.print(f"no --data: using the sample data in {out}")
    return out
