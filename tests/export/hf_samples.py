"""Folders as they are downloaded from the Hugging Face hub, made here: tiny tokenizers and a tiny text model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertConfig, M2M100Config, MT5Config, PreTrainedTokenizerFast, RobertaConfig
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

LINES = [
    "a photo of a red bird.",
    "an ant, a bee and a crab!",
    "the quick brown fox jumps over the lazy dog",
    "\u6771\u4eac\u90fd \u306e \u5199\u771f",
    "caf\u00e9 \u00df \u03a3 1234567890",
] * 10
UNKNOWN = "<unk>"
SENTENCEPIECE = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": UNKNOWN}
ROBERTA = {"bos_token": "<s>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>", **SENTENCEPIECE}
BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def unigram(folder: Path) -> Path:
    """Like SigLIP's and mT5's: pieces of sentencepiece, an end behind the text, padded with 0."""
    engine = Tokenizer(models.Unigram())
    engine.normalizer, engine.decoder = normalizers.NFKC(), decoders.Metaspace()
    engine.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    engine.train_from_iterator(
        LINES, trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token=UNKNOWN, show_progress=False)
    )
    engine.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return _saved(engine, folder, SENTENCEPIECE)


def roberta(folder: Path) -> Path:
    """Byte-level BPE between <s> and </s>, padded with 1."""
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer, engine.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(LINES, trainer)
    engine.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return _saved(engine, folder, ROBERTA)


def bert(folder: Path) -> Path:
    """Lower-cased WordPiece between [CLS] and [SEP]: what CLIPA's models use."""
    engine = Tokenizer(models.WordPiece(unk_token=BERT["unk_token"]))
    engine.normalizer, engine.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=list(BERT.values()), show_progress=False)
    engine.train_from_iterator(LINES, trainer)
    ends = [(name, engine.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    engine.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return _saved(engine, folder, BERT)


def on_the_left(folder: Path) -> Path:
    """The same, cut and padded on the left."""
    inner = AutoTokenizer.from_pretrained(bert(folder))
    inner.padding_side = inner.truncation_side = "left"
    inner.save_pretrained(folder)
    return folder


def many_languages(folder: Path, language: str = "eng_Latn") -> Path:
    """Like NLLB's: the language stands before the text."""
    from transformers import NllbTokenizerFast

    pieces = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", *"abcdefghijklmnopqrstuvwxyz", "\u2581a"]
    codes = {code: len(pieces) + index for index, code in enumerate(FAIRSEQ_LANGUAGE_CODES)}
    vocabulary = {piece: index for index, piece in enumerate(pieces)} | codes
    NllbTokenizerFast(vocab=vocabulary, merges=[("\u2581", "a")], src_lang=language).save_pretrained(folder)
    return folder


TOKENIZERS: dict[str, Callable[[Path], Path]] = {
    "unigram": unigram,
    "roberta": roberta,
    "bert": bert,
    "on the left": on_the_left,
    "many languages": many_languages,
}


def text_model(folder: Path, **changes: Any) -> Path:
    """A tiny RoBERTa: its configuration, no weights."""
    settings = {
        "vocab_size": 400,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 100,
        "pad_token_id": 1,
    }
    RobertaConfig(**{**settings, **changes}).save_pretrained(folder)
    return folder


def bert_model(folder: Path) -> Path:
    """A tiny BERT, likewise; its weights spread enough for its first token to tell texts apart."""
    BertConfig(
        vocab_size=150,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=100,
        initializer_range=1.0,
    ).save_pretrained(folder)
    return folder


def mt5(folder: Path) -> Path:
    """A tiny mT5, likewise: its configuration names no context."""
    MT5Config(vocab_size=120, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2).save_pretrained(folder)
    return folder


def m2m_100(folder: Path) -> Path:
    """A tiny M2M100, likewise: what NLLB's are."""
    M2M100Config(
        vocab_size=400,
        d_model=16,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        max_position_embeddings=100,
        init_std=1.0,
    ).save_pretrained(folder)
    return folder


def _saved(engine: Tokenizer, folder: Path, special: dict[str, str]) -> Path:
    PreTrainedTokenizerFast(tokenizer_object=engine, **special).save_pretrained(folder)
    return folder
