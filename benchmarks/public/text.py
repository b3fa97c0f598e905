"""Re-rankers of transformers: the user's query and a candidate's text in one sequence, or late interaction of both."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.public.export import In, Model

QUERY, TEXT, WORDS = 14, 8, 90
COMMON = {"vocab_size": WORDS, "num_labels": 1, "pad_token_id": 0}
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": 64}  # fmt: skip
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "n_inner": 64}
LLAMA = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 48, "max_position_embeddings": 64, "head_dim": 8}  # fmt: skip
PLAIN: dict[str, dict[str, Any]] = {
    "Bert": BERT,
    "Roberta": BERT,
    "Electra": BERT | {"embedding_size": 16},
    "Albert": BERT | {"embedding_size": 16},
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 64},
    "MPNet": BERT,
    "Deberta": BERT | {"pos_att_type": ["c2p", "p2c"], "relative_attention": True, "type_vocab_size": 0},
    "DebertaV2": BERT | {"pos_att_type": ["c2p", "p2c"], "relative_attention": True, "type_vocab_size": 0,
                         "share_att_key": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm"},
    "XLNet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64},
    "ModernBert": BERT | {"global_attn_every_n_layers": 2, "local_attention": 8, "cls_token_id": 1,
                          "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
    "ConvBert": BERT | {"embedding_size": 32, "head_ratio": 2, "conv_kernel_size": 3, "num_groups": 1},
    "SqueezeBert": BERT | {"embedding_size": 32, "q_groups": 2, "k_groups": 2, "v_groups": 2,
                           "post_attention_groups": 1, "intermediate_groups": 2, "output_groups": 2},
    "MobileBert": BERT | {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "RoFormer": BERT | {"embedding_size": 32},
    "Nystromformer": BERT | {"segment_means_seq_len": 22, "num_landmarks": 22, "conv_kernel_size": 3},
    "MegatronBert": BERT,
    "LayoutLM": BERT,
    "RemBert": BERT | {"input_embedding_size": 16, "output_embedding_size": 16},
    "XLM": {"emb_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64},
    "Flaubert": {"emb_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64},
    "IBert": BERT,
    "Esm": BERT | {"position_embedding_type": "rotary", "mask_token_id": 3},
    "Funnel": {"d_model": 32, "block_sizes": [1, 1], "n_head": 2, "d_head": 16, "d_inner": 64},
    "Canine": BERT | {"num_hash_buckets": 64, "num_hash_functions": 2, "local_transformer_stride": 8,
                      "downsampling_rate": 2, "upsampling_kernel_size": 2},
    "RobertaPreLayerNorm": BERT,
    "GPT2": GPT,
    "OpenAIGPT": GPT,
    "OPT": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64,
            "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "GPTNeoX": BERT,
    "GPTNeo": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]],
               "window_size": 8, "intermediate_size": 64, "max_position_embeddings": 64},
    "GPTJ": GPT | {"rotary_dim": 8},
    "Llama": LLAMA,
    "Mistral": LLAMA | {"sliding_window": 10},
    "Qwen2": LLAMA,
    "Qwen3": LLAMA,
    "Gemma": LLAMA,
    "Gemma2": LLAMA | {"sliding_window": 10, "query_pre_attn_scalar": 8},
    "Phi": BERT | {"partial_rotary_factor": 0.5},
    "Phi3": LLAMA,
    "StableLm": LLAMA,
    "Starcoder2": LLAMA,
    "Falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "alibi": False},
    "Persimmon": BERT,
    "BioGpt": BERT,
    "SmolLM3": LLAMA,
    "T5": {"d_model": 32, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 2, "d_kv": 16, "d_ff": 64,
           "decoder_start_token_id": 0, "eos_token_id": 89},
    "Bart": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
             "eos_token_id": 89},
}  # fmt: skip
SEGMENTS = {"Bert", "Electra", "Albert", "ConvBert", "MobileBert", "RoFormer", "RemBert", "XLNet"}
ENDS = {"T5", "Bart"}
LATE = {"Bert", "MPNet", "Electra", "ModernBert", "Roberta"}


def _cross_encoder(name: str, config: dict[str, Any]) -> Any:
    import torch
    import transformers

    known = getattr(transformers, f"{name}Config")(**COMMON | config, attn_implementation="eager")
    net = getattr(transformers, f"{name}ForSequenceClassification")(known)

    class CrossEncoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, query: Any, text: Any) -> Any:
            ids = torch.cat([query, text], 1)
            given = {}
            if name in SEGMENTS:
                given["token_type_ids"] = torch.cat([torch.zeros_like(query), torch.ones_like(text)], 1)
            if name in ENDS:
                ids = torch.cat([ids.clamp(max=WORDS - 2), torch.full_like(query[:, :1], WORDS - 1)], 1)
            return self.net(input_ids=ids, **given).logits[:, 0]

    return CrossEncoder()


def _late_interaction(name: str, config: dict[str, Any]) -> Any:
    import torch
    import transformers

    known = getattr(transformers, f"{name}Config")(**COMMON | config, attn_implementation="eager")

    class Late(torch.nn.Module):
        """As ColBERT: for each token of the query the best one of the text."""

        def __init__(self) -> None:
            super().__init__()
            self.net = getattr(transformers, f"{name}Model")(known)
            self.slim = torch.nn.Linear(32, 16)

        def forward(self, query: Any, text: Any) -> Any:
            q, t = (torch.nn.functional.normalize(self.slim(self.net(input_ids=x)[0]), dim=-1) for x in (query, text))
            return (q @ t.transpose(1, 2)).amax(2).sum(1)

    return Late()


def models() -> Iterator[Model]:
    """A model for each architecture."""
    inputs = [In("query", "user", (QUERY,), WORDS - 1), In("text", "item", (TEXT,), WORDS - 1)]
    for name, config in PLAIN.items():
        yield Model(f"hf_{name.lower()}", "transformers", partial(_cross_encoder, name, config), inputs)
    for name in sorted(LATE):
        yield Model(f"hf_colbert_{name.lower()}", "transformers", partial(_late_interaction, name, PLAIN[name]), inputs)
