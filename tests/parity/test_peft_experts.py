"""LoRA on models with experts: PEFT takes some names of layers for experts', routers are no plain linear layers."""

import peft
import pytest
import tiny
import torch
import transformers

from burnish.adapters import _lora, lora, qlora
from burnish.errors import TaskError
from burnish.models import base, load
from burnish.models.quantize import Linear4

FEW = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 24, "head_dim": 8}
ROUTED = {"n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 24, "n_group": 1, "topk_group": 1}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
FAMILIES = {
    "qwen2_moe": {**FEW, "shared_expert_intermediate_size": 24},
    "deepseek_v3": {**ROUTED, **LATENT, "num_key_value_heads": 4, "first_k_dense_replace": 1},
    "glm4_moe": {**ROUTED, "head_dim": 8, "first_k_dense_replace": 1},
    "llama4_text": {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48},
    "phimoe": {"num_local_experts": 2},
}
IDS = torch.tensor([[5, 9, 6, 8, 11, 40]])


def made(family, folder, **own):
    config = transformers.AutoConfig.for_model(family, **{**tiny.SMALL, **FAMILIES[family], **own})
    hf = transformers.AutoModelForCausalLM.from_config(config)
    tiny.redraw(dict(hf.named_parameters()))
    hf.save_pretrained(folder / "base")
    return base.inspect(str(folder / "base"))


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_loads_in_peft(family, settings, tmp_path):
    found = made(family, tmp_path)
    model = load.load(found, tiny.HEADS["language"], dropout=0.0)
    lora.attach(model, settings, 0.1, 0)
    shared = {name.rpartition(".")[2] for name in _lora.layers(model)} & {"gate_proj", "up_proj", "down_proj"}
    assert bool(shared) == (not settings and family != "phimoe")
    with torch.no_grad():
        for layer in _lora.layers(model).values():
            layer.lora_B.normal_(0, 0.2)
    lora.save(model, tmp_path, str(found.folder))
    plain = transformers.AutoModelForCausalLM.from_pretrained(found.folder)
    told = peft.PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    again = load.load(found, tiny.HEADS["language"], dropout=0.0)
    lora.load(again, tmp_path)
    with torch.no_grad():
        wanted = model.eval().hf(IDS).logits
        assert torch.equal(again.eval().hf(IDS).logits, wanted)
        torch.testing.assert_close(told(IDS).logits, wanted, rtol=2e-5, atol=2e-5)


def test_routers_are_not_quantised(tmp_path):
    found = made("llama4_text", tmp_path)
    model = load.load(found, tiny.HEADS["language"], quantised=True)
    qlora.attach(model, {}, 0.0, 0)
    assert sum(isinstance(item, Linear4) for item in model.hf.modules()) > 0
    assert torch.isfinite(model.hf(IDS).logits).all()


def test_a_model_without_linear_layers_is_refused(tmp_path_factory):
    model = load.load(base.inspect(str(tiny.folder("llama", tmp_path_factory))), tiny.HEADS["language"])
    own = type("Own", (torch.nn.Linear,), {"forward": lambda self, x: (x, x)})
    for module in model.hf.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = own
    with pytest.raises(TaskError, match="no linear layer"):
        lora.attach(model, {}, 0.0, 0)
