"""llm-blender 0.0.2, the package of PairRM's authors, on transformers 5: what it takes to be a reference there.

It was written for transformers 4. With the first two of its four repairs alone it runs, and is wrong without a word; with all four it gives the numbers that it gives on transformers 4.57.
"""
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

def reference_tokenizer(folder, **_):
    "DeBERTa's tokenizer from its spm.model by transformers' converter, in a class that changes nothing of it; without markers, which llm-blender adds itself."
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import DebertaV2Converter
    slow = SimpleNamespace(vocab_file=f"{folder}/spm.model", split_by_punct=False, do_lower_case=False, convert_tokens_to_ids=["[PAD]", "[CLS]", "[SEP]"].index)
    return PreTrainedTokenizerFast(tokenizer_object=DebertaV2Converter(slow).converted(), unk_token=AddedToken("[UNK]", special=True, normalized=True),
                                   cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", mask_token="[MASK]")

@contextmanager
def repaired():
    "The package `llm_blender`, working while the block lasts."
    import transformers.utils.hub
    from huggingface_hub.constants import HF_HUB_CACHE
    from transformers import PreTrainedTokenizerBase
    with pytest.MonkeyPatch.context() as repair:
        repair.setattr(transformers.utils.hub, "TRANSFORMERS_CACHE", HF_HUB_CACHE, raising=False) # 1: a name that is gone
        repair.setattr(PreTrainedTokenizerBase, "batch_encode_plus", PreTrainedTokenizerBase.__call__, raising=False) # 2: a method that is gone
        import llm_blender
        from llm_blender.blender import blender_utils
        from llm_blender.pair_ranker import model_util
        build = model_util.build_pretrained_model
        repair.setattr(blender_utils, "build_tokenizer", reference_tokenizer) # 3: transformers 5 gives DeBERTa another normalization
        repair.setattr(model_util, "build_pretrained_model", lambda *args, **kwargs: build(*args, dtype=torch.float32, **kwargs)) # 4: and takes the base model's fp16
        yield llm_blender

def load_blender(llm_blender, checkpoint, base):
    "llm-blender with a checkpoint in the form of `PairRM`, on the CPU; `base`, with an spm.model, stands in the place of microsoft/deberta-v3-large."
    blender = llm_blender.Blender()
    blender.blender_config.use_tqdm = False
    blender.loadranker(str(checkpoint), device="cpu", model_name=str(base))
    return blender

def save_checkpoint(folder, texts, hidden_size, num_layers, vocab_size=2000):
    """A random `PairRM`, and `base` in the place of microsoft/deberta-v3-large, with a tokenizer trained on `texts`.

    The weights of `base` are in fp16 and do not matter; its spm.model does.
    """
    from dpo_nb.data.train_tiny import save_pairrm, train_spm
    from dpo_nb.pair_ranker import PairRanker, PairTokenizer, convert_spm, deberta_v3
    (folder/"base").mkdir()
    spm = convert_spm(train_spm(texts, folder/"base"/"spm.model", vocab_size=vocab_size))
    torch.manual_seed(0)
    config = deberta_v3(spm.get_vocab_size(), hidden_size=hidden_size, num_layers=num_layers, intermediate_size=4 * hidden_size)
    config.initializer_range = .1
    other, ranker = PairRanker(config).pretrained_model, PairRanker(config)
    with torch.no_grad(): ranker.head_layer[4].weight.mul_(32) # So that scores are about 1, as PairRM's are
    other.half().save_pretrained(folder/"base")
    save_pairrm(folder/"PairRM", ranker, PairTokenizer(spm), hf=False)
    return folder
