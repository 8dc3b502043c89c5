"""`headrace plan` as people use it: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.__main__ import main
from serving.engine_args import EngineKind, Parallelism
from serving.machine import Gpu
from serving.planner.hardware import kind
from serving.replica.checks import Findings, Plan, contradictions, degrees_of
from serving.replica.settings import Gpus, parse, read_file

H200 = ("--gpu", "h200", "--count", "8")
SMALL_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "intermediate_size": 512,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}


def plan(*said: str) -> int:
    """Run the command; its exit code."""
    return main(["plan", *said])


def cpu_seconds(*said: str) -> float:
    """Of processor time; the least of some runs, for others use the processor's caches too."""
    found = []
    for _ in range(5):
        began = time.process_time()
        assert plan(*said) == 0
        found.append(time.process_time() - began)
        if found[-1] < 0.5:
            break
    return min(found)


def written(what: str, path: Path, *said: str) -> str:
    """What it writes to a file in that format."""
    assert plan(*said, "--write", what, str(path)) == 0
    return path.read_text()


def engine_arguments(line: str) -> argparse.Namespace:
    """A line of arguments, read as vLLM's own parser reads these."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    for name in ("model", "kv-cache-dtype"):
        parser.add_argument(f"--{name}")
    for name in (
        "tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size", "max-model-len",
        "max-num-seqs", "max-num-batched-tokens", "kv-cache-memory-bytes",
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=1)
    parser.add_argument("--gpu-memory-utilization", type=float)
    parser.add_argument("--enable-expert-parallel", action="store_true")
    return parser.parse_args(shlex.split(line))


def test_the_table_says_what_was_chosen_and_why_others_lost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plan("llama-3.3-70b-instruct", *H200, "--rate", "5", "--prompt-tokens", "2000") == 0
    said = capsys.readouterr().out
    assert "plan: " in said
    assert "TP2" in said
    assert "64 attention heads do not divide by TP 3" in said
    assert "GiB a GPU before any KV cache" in said
    assert "times the price" in said


def test_what_is_written_says_the_same_in_every_format(tmp_path: Path) -> None:
    said = (
        "Qwen3-Coder-480B-A35B-Instruct-FP8", *H200, "--nodes", "4", "--rate", "60",
        "--split", "DP8-EP",
    )  # fmt: skip
    whole: dict[str, Any] = json.loads(written("json", tmp_path / "plan.json", *said))
    [pool] = whole["pools"]
    degrees = pool["parallelism"]
    arguments = written("args", tmp_path / "plan.args", *said)
    [line] = [each for each in arguments.splitlines() if not each.startswith("#")]
    read = engine_arguments(line)
    assert read.model == whole["model"] == "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8"
    assert read.tensor_parallel_size == degrees["tensor"]
    assert read.pipeline_parallel_size == degrees["pipeline"]
    assert read.data_parallel_size == degrees["data"]
    assert read.enable_expert_parallel is degrees["expert"] is True
    assert read.gpu_memory_utilization == 0.92
    values = yaml.safe_load(written("helm", tmp_path / "values.yaml", *said))
    assert values["parallelism"] == degrees
    assert values["workload"]["replicas"] == len(pool["replicas"])
    assert values["model"]["contextLength"] == read.max_model_len
    size = degrees["tensor"] * degrees["pipeline"] * degrees["data"]
    assert values["gpu"]["count"] == size == 8
    assert len(pool["replicas"]) > 1
    assert whole["gpus"] == size * len(pool["replicas"])


def test_a_replica_over_two_hosts_is_a_leaderworkerset(tmp_path: Path) -> None:
    said = (
        "Llama-3.1-405B-Instruct", "--gpu", "h100", "--count", "8", "--nodes", "2",
        "--ttft", "20", "--tpot", "0.5",
    )  # fmt: skip
    values = yaml.safe_load(written("helm", tmp_path / "values.yaml", *said))
    assert values["workload"]["kind"] == "leaderworkerset"
    assert values["parallelism"]["tensor"] * values["parallelism"]["pipeline"] == 16
    assert values["gpu"]["count"] == 8


def test_a_replica_that_fills_one_host_and_half_another_has_pods_that_fit_both(
    tmp_path: Path,
) -> None:
    said = (
        "Llama-3.1-405B-Instruct", "--gpu", "h100", "--count", "8", "--nodes", "2",
        "--split", "TP4-PP3", "--ttft", "20", "--tpot", "0.5",
    )  # fmt: skip
    values = yaml.safe_load(written("helm", tmp_path / "values.yaml", *said))
    assert values["workload"]["kind"] == "leaderworkerset"
    assert values["gpu"]["count"] == 4


def test_a_claim_asks_for_like_gpus_and_for_one_pcie_switch_where_the_plan_counts_on_it(
    tmp_path: Path,
) -> None:
    said = ("Qwen2.5-32B-Instruct", "--gpu", "l40s", "--count", "2", "--ttft", "5", "--tpot", "0.2")
    claim = yaml.safe_load(written("dra", tmp_path / "claim.yaml", *said))
    assert claim["apiVersion"] == "resource.k8s.io/v1"
    assert claim["kind"] == "ResourceClaimTemplate"
    devices = claim["spec"]["spec"]["devices"]
    [request] = devices["requests"]
    assert request["exactly"]["count"] == 2
    assert request["exactly"]["deviceClassName"] == "gpu.nvidia.com"
    assert "L40S" in request["exactly"]["selectors"][0]["cel"]["expression"]
    assert [each["matchAttribute"] for each in devices["constraints"]] == [
        "gpu.nvidia.com/productName",
        "resource.kubernetes.io/pcieRoot",
    ]


def test_a_mig_slice_is_claimed_by_its_profile(tmp_path: Path) -> None:
    said = ("Qwen2.5-0.5B-Instruct", "--gpu", "h100-1g.10gb", "--count", "7")
    claim = yaml.safe_load(written("dra", tmp_path / "claim.yaml", *said))
    [request] = claim["spec"]["spec"]["devices"]["requests"]
    assert request["exactly"]["deviceClassName"] == "mig.nvidia.com"
    assert request["exactly"]["count"] == 1
    assert "1g.10gb" in request["exactly"]["selectors"][0]["cel"]["expression"]
    assert "constraints" not in claim["spec"]["spec"]["devices"]
    values = yaml.safe_load(written("helm", tmp_path / "values.yaml", *said))
    assert values["gpu"] == {
        "mode": "mig", "count": 1, "resourceName": "nvidia.com/mig-1g.10gb",
        "migProfile": "1g.10gb",
    }  # fmt: skip


def test_the_platform_is_told_the_nodes_that_the_plan_uses(tmp_path: Path) -> None:
    """Whole ones, with what the inventory has on them, though a replica takes only half."""
    said = ("Llama-3.3-70B-Instruct", "--gpu", "h200", "--count", "8", "--nodes", "3")
    one = ("--split", "TP4", "--rate", "0.1", "--prompt-tokens", "1000", "--output-tokens", "100")
    values = yaml.safe_load(written("platform", tmp_path / "platform.yaml", *said, *one))
    assert values == {"gpus": [{"name": "h200", "perNode": 8, "nodes": 1, "instance": "h200"}]}


@pytest.mark.parametrize(
    ("kind", "slices", "expected"),
    [
        ("h100-1g.10gb", 14, {"perNode": 2, "perGpu": 7}),
        ("h100-1g.20gb", 4, {"perNode": 1, "perGpu": 4}),
        ("h200-2g.35gb", 4, {"perNode": 2, "perGpu": 3}),
        ("a100-80gb-3g.40gb", 2, {"perNode": 1, "perGpu": 2}),
    ],
)
def test_slices_are_told_as_the_gpus_they_are_cut_from(
    tmp_path: Path, kind: str, slices: int, expected: dict[str, int]
) -> None:
    said = ("Qwen2.5-0.5B-Instruct", "--gpu", kind, "--count", str(slices))
    [node] = yaml.safe_load(written("platform", tmp_path / "platform.yaml", *said))["gpus"]
    assert node["perNode"] == expected["perNode"]
    assert node["sharing"]["perGpu"] == expected["perGpu"]
    assert node["name"].endswith(node["sharing"]["profile"])
    assert "instance" not in node


def test_a_plan_without_gpus_needs_no_nodes_of_the_platform(
    tmp_path: Path, small_llama: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = (small_llama, "--gpu", "cpu", "--write", "platform", str(tmp_path / "x.yaml"))
    assert plan(*said) == 2
    assert "the plan has none" in capsys.readouterr().err


def test_different_gpus_share_the_work_and_each_kind_has_its_file(tmp_path: Path) -> None:
    inventory = tmp_path / "inventory.yaml"
    inventory.write_text(
        yaml.safe_dump(
            {
                "nodes": [
                    {"name": "big", "gpus": [{"kind": "h200", "count": 1}]},
                    {"name": "cut", "gpus": [{"kind": "h100-3g.40gb", "count": 2}]},
                ]
            }
        )
    )
    said = ("Llama-3.1-8B-Instruct", "--inventory", str(inventory))
    assert plan(*said, "--write", "helm", str(tmp_path / "values.yaml")) == 0
    big = yaml.safe_load((tmp_path / "values-h200.yaml").read_text())
    cut = yaml.safe_load((tmp_path / "values-h100-3g.40gb.yaml").read_text())
    assert big["workload"]["replicas"] == 1
    assert cut["workload"]["replicas"] == 2


@pytest.fixture
def small_llama(tmp_path: Path) -> str:
    """A folder with the config.json of a Llama of 8 heads."""
    (tmp_path / "config.json").write_text(json.dumps(SMALL_LLAMA))
    return str(tmp_path)


def test_two_cpu_devices_serve_a_small_llama_at_tp_2(
    small_llama: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = (small_llama, "--gpu", "cpu", "--count", "2", "--split", "TP2", "--write", "args", "-")
    assert plan(*said) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    read = engine_arguments(line)
    assert read.model == small_llama
    assert read.tensor_parallel_size == 2
    assert read.kv_cache_memory_bytes % (1024 * 1024) == 0
    assert read.gpu_memory_utilization is None


def test_the_settings_of_a_replica_are_read_by_it_and_agree(tmp_path: Path) -> None:
    said = ("Qwen3-30B-A3B", *H200, "--split", "TP4-EP", "--kv-cache-dtype", "fp8")
    written("replica", tmp_path / "replica.yaml", *said)
    settings = parse(read_file(str(tmp_path / "replica.yaml")))
    assert settings.model == "Qwen/Qwen3-30B-A3B"
    assert degrees_of(settings.parallelism, settings.args) == Parallelism(4, 1, 1, expert=True)
    assert settings.gpus == Gpus("H200", 4, 133)
    assert "--kv-cache-dtype=fp8" in settings.args
    here = [Gpu("NVIDIA H200", kind("h200").memory)] * 4
    asked = Plan(EngineKind.VLLM, settings.parallelism, settings.gpus)
    assert contradictions(asked, Findings(here, cores=8)) == []


def test_the_settings_of_a_replica_on_cpu_are_read_by_it(tmp_path: Path, small_llama: str) -> None:
    said = (small_llama, "--gpu", "cpu", "--count", "2", "--split", "TP2")
    written("replica", tmp_path / "replica.yaml", *said)
    settings = parse(read_file(str(tmp_path / "replica.yaml")))
    assert settings.engine == "vllm-cpu"
    asked = Plan(EngineKind.VLLM_CPU, settings.parallelism, settings.gpus)
    assert contradictions(asked, Findings([], cores=2, model=SMALL_LLAMA)) == []


def test_a_measured_profile_takes_the_rooflines_place(tmp_path: Path, small_llama: str) -> None:
    profile = tmp_path / "profile.json"
    timing = dict.fromkeys(
        ("prefill_token_s", "prefill_token_pair_s", "decode_sequence_s", "decode_context_token_s"),
        0.0,
    )
    shape = {
        "block_size": 16, "blocks": 100, "max_num_seqs": 8, "max_num_batched_tokens": 2048,
        "max_model_len": 2048,
    }  # fmt: skip
    profile.write_text(
        json.dumps(
            {
                "name": "mine", "basis": "measured", "note": "", "engine": shape,
                "timing": timing | {"base_s": 0.01, "decode_s": 0.005, "arrival_s": 0.5},
            }
        )
    )  # fmt: skip
    said = (small_llama, "--gpu", "cpu", "--split", "tp1", "--rate", "1", "--prompt-tokens", "100")
    both = (*said, "--profile", f"cpu/TP1={profile}")
    [pool] = json.loads(written("json", tmp_path / "plan.json", *both))["pools"]
    assert pool["basis"] == "profile"
    assert pool["tpot_s"] == pytest.approx(0.015)
    assert 0.5 < pool["ttft_s"] < 0.6
    [guessed] = json.loads(written("json", tmp_path / "plan.json", *said))["pools"]
    assert guessed["basis"] == "roofline"


def test_a_trace_gives_rate_and_lengths(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp": 500 * n, "input_length": 1000 + n, "output_length": 100, "hash_ids": []}
        for n in range(101)
    ]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = ("Llama-3.1-8B-Instruct", *H200, "--trace", str(trace))
    asked = json.loads(written("json", tmp_path / "plan.json", *said))["demand"]
    assert asked["rate"] == pytest.approx(2.0)
    assert asked["prompt_tokens"] == pytest.approx(1050)
    assert asked["output_tokens"] == pytest.approx(100)


@pytest.mark.parametrize("model", ["DeepSeek-V3", "Llama-3.3-70B-Instruct", "gpt-oss-120b"])
def test_64_nodes_of_8_gpus_take_less_than_a_second(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cpu_seconds(model, *H200, "--nodes", "64", "--rate", "50") < 1.0
    assert "plan: " in capsys.readouterr().out


def test_so_do_64_hosts_of_three_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inventory = tmp_path / "inventory.yaml"
    nodes = [("h200", 8, 32), ("h100", 8, 16), ("h100-1g.20gb", 28, 8), ("l40s", 8, 8)]
    inventory.write_text(
        yaml.safe_dump(
            {
                "nodes": [
                    {"name": f"{what}-host", "count": n, "gpus": [{"kind": what, "count": each}]}
                    for what, each, n in nodes
                ]
            }
        )
    )
    said = ("Qwen3-30B-A3B-FP8", "--inventory", str(inventory), "--rate", "8000")
    assert cpu_seconds(*said) < 1.0
    assert "plan: " in capsys.readouterr().out


BROKEN = {
    "which model": (),
    "no model we know": ("nobody/has-this", *H200),
    "no GPU is known as 'h9000'": ("qwen3-8b", "--gpu", "h9000"),
    "--count and --nodes must be at least 1": ("qwen3-8b", "--gpu", "h200", "--count", "0"),
    "give one": ("qwen3-8b", *H200, "--inventory", "x.yaml"),
    "No such file": ("qwen3-8b", "--inventory", "/nowhere/x.yaml"),
    "expected one of": ("qwen3-8b", *H200, "--write", "xml", "x"),
    "--rate must be more than 0": ("qwen3-8b", *H200, "--rate", "-1"),
    "--ttft must be more than 0": ("qwen3-8b", *H200, "--ttft", "nan"),
    "are more than these GPUs serve": ("llama-3.3-70b-instruct", *H200, "--rate", "1000"),
    "before any KV cache": ("deepseek-v3", "--gpu", "l4", "--count", "8"),
    "with nothing else running": ("llama-3.3-70b-instruct", *H200, "--tpot", "0.0001"),
    "tokens, and 100200 are asked for": ("qwen3-8b", *H200, "--prompt-tokens", "100000"),
    "--max-model-len 100": ("qwen3-8b", *H200, "--max-model-len", "100"),
    "is no split": ("qwen3-8b", *H200, "--split", "QQ4"),
    "expected GPU/SPLIT=VALUE": ("qwen3-8b", *H200, "--profile", "x"),
    "is not tokens a second": ("qwen3-8b", *H200, "--prefill-rate", "h200/TP1=fast"),
    "but no GPU is a l4": ("qwen3-8b", *H200, "--prefill-rate", "L4/TP1=900"),
    "not a price": ("qwen3-8b", *H200, "--price", "h200=-3"),
    "/nowhere/trace.jsonl: ": ("qwen3-8b", *H200, "--trace", "/nowhere/trace.jsonl"),
    "do not divide by TP 3": ("qwen3-8b", *H200, "--split", "TP3"),
    "not for mi300x": ("qwen3-8b", "--gpu", "mi300x", "--write", "dra", "-"),
}


@pytest.mark.parametrize("says", BROKEN)
def test_wrong_or_impossible_input_is_one_line_and_exit_2(
    says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(*BROKEN[says]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_names_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--list-models") == 0
    assert "deepseek-ai/DeepSeek-V3" in capsys.readouterr().out.splitlines()


def test_what_the_page_on_planning_says_can_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[4] / "docs/planning.md").read_text()
    monkeypatch.chdir(tmp_path)
    [inventory] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "gpus.yaml").write_text(inventory)
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-model/config.json").write_text(json.dumps(SMALL_LLAMA))
    rows = [
        {"timestamp": 100 * n, "input_length": 300, "output_length": 50, "hash_ids": []}
        for n in range(20)
    ]
    (tmp_path / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    commands = re.findall(r"^\$ headrace (plan .*)", page, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert main(shlex.split(command)) == 0
    assert list(tmp_path.glob("replica*.yaml"))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    shown = capsys.readouterr().out
    assert [flag for flag in re.findall(r"`(--[a-z-]+)", page) if flag not in shown] == []
    for named in re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE):
        assert named in shown
    for named in re.search(r"Kinds known: `([^`]+)`", page)[1].split():  # type: ignore[index]
        assert kind(named)
