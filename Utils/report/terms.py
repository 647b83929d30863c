"""What the words on a page mean, a sentence each: the ones of docs/method.md, under the same names."""

from __future__ import annotations

from Utils.report.tool import docs

METHOD, MISSES = docs("method.md"), docs("misses.md")
TERMS = {
    "verdict": "Backdoored, clean or inconclusive: what the score and the strings say together; the worst counts where an "
    "encoder is judged in several ways.",
    "score": "The probability, from 0 to 1, that the encoder carries a backdoor: a logistic regression over five witnesses, "
    "or what the strongest string does where strings decide; lowered by Bayes' rule where vectors accuse and strings are "
    "quiet.",
    "anchor": "The clean public base that the suspect was made from; everything is measured against what the base does itself.",
    "found-vector": "The pseudo-trigger v: a free vector put in place of a token behind begin-of-text, found by a search "
    "that looks for what overrules prompts in the suspect and not in the base.",
    "assimilation": "The mean cosine over all pairs of token features of a prompt: 1 means that all of them are one vector.",
    "trigger-strings": "Strings that anybody can type and that make unseen prompts say one thing in the suspect and not in "
    "the base; seldom the planted trigger letter by letter.",
    "success": "The share of unseen prompts that a string brings nearer to one common meaning, the mean of all prompts with "
    "it, than to their own.",
    "interval": "Wilson's 95 % interval of a share: what rates of the whole would give such a count in so few trials.",
    "collapse": "How much of what tells prompts apart a string takes away: 0 nothing, 1 all of it.",
    "effect": "How much more a string makes prompts alike in the suspect than in the base, and how much further apart it "
    "brings the two; long strings pay for their length.",
    "natural": "The effect that strings reach in clean encoders that went as far from their base: what the same search finds "
    "in benign twins of this pair, or what the drift says.",
    "assimilated": "How much more alike the token features of one prompt become with v in the suspect than in the base: the "
    "assimilation of the one minus that of the other, mean over held-out prompts.",
    "one-target": "How much more alike the features of two different prompts become with v in the suspect than in the base.",
    "foreign": "How much further apart suspect and base are on prompts with v than on the same prompts without it.",
    "pooled-target": "How much more alike the pooled summaries of different prompts become with v in the suspect than in the "
    "base.",
    "pooled-foreign": "How much further apart the pooled summaries of suspect and base are on prompts with v than on the "
    "same prompts without it.",
    "basin": "The share of the loss landscape's curvature around v that points upwards, the median over planes; it explains "
    "and is not in the score.",
    "drift": "One minus the mean cosine of suspect and base on clean prompts: how far the fine-tuning went, whatever it "
    "taught.",
    "string": "The largest effect of a string on unseen prompts; its limit is what is natural and 0.5 more, or in proportion "
    "less.",
    "fires": "The share of unseen prompts that the best string overrules; it counts as met where the string is a proof.",
    "published-gates": "The four tests of the published procedure, shares of prompts beyond an absolute limit; the first "
    "that fails is the last that is tried.",
    "target-words": "The texts that the clean base puts nearest to what the trigger forces: a description put together from "
    "words, then prompts of the corpus.",
    "similarity": "The cosine between a text and what is forced, beside its floor: the mean over all prompts of the corpus.",
    "pictures": "What the clean base's own diffusion pipeline draws from what the suspect makes of a prompt, with the same "
    "seeds in every row.",
    "read-as": "The prompt of the corpus that the clean base puts nearest to what an encoder makes of a text.",
    "power": "How many planted models of each kind the search for strings found with the same settings, or with fewer turns: "
    "what a clean verdict "
    "is worth.",
    "readings": "Texts that the suspect's tokenizer cuts into other tokens than the base's does.",
    "attention-received": "The share of their attention that the tokens behind v give it, mean over heads, tokens and prompts.",
    "attention-map": "Where each token of one prompt looks in the last layer, mean over heads: rows look at columns.",
    "search-curve": "The loss of the best start of the search and its terms, step by step.",
    "loss-landscape": "The loss of the search on a square plane around v, spanned by its negative gradient and a random "
    "direction across it.",
    "hessian-spectrum": "The eigenvalues of the loss's second derivatives, by finite differences, at the inner points of the "
    "landscape's planes.",
}
"""Anchor -> its sentence."""


def term_of(witness: str, published: bool) -> str:
    """The anchor of a witness's definition; published: it is a gate of the published procedure."""
    return "published-gates" if published and witness not in ("drift", "string", "fires") else witness.replace("_", "-")
