"""One sentence for each metric that the results pages show. Rates are shown in percent."""

MEANINGS = {
    "asr": "Attack success rate: how often a triggered picture of another class is called the target.",
    "clean_accuracy": "How often a picture without a trigger gets its true class (zero-shot).",
    "target_accuracy": "The same for pictures of the target class. A cleaner that forgets the target lowers it.",
    "poisoned_accuracy": "How often a triggered picture still gets its true class. Higher is better.",
    "rebound_asr": (
        "Attack success rate after one more epoch of fine-tuning on clean pairs. Where it is higher than `asr`, the "
        "backdoor came back."
    ),
    "asr_at_1": "Lowest attack success rate that costs at most 1 point of accuracy, between measured strengths.",
    "asr_at_3": "The same for 3 points.",
    "asr_at_5": "The same for 5 points.",
    "clean_model_asr": "How often the same trigger leads to the target on a model that was never attacked.",
    "top_precision": "How many of UBT's 24 surest pairs are poisons.",
    "weak_precision": "How many would be, had UBT chosen them by similarity alone, without overfitting first.",
    "target_named": "How often the target class was named correctly.",
    "target_feature_cosine": "Cosine of the place where the found trigger leads with the true trigger's.",
    "pairs_seen": "Pairs that the training drew, counted each time.",
    "seconds": "Duration of the cleaning. Stages ran side by side and beside other work, so this is a rough guide.",
    "parameters": "How many numbers were trained.",
    "psr": "Poison success rate: how many of the 16 chosen pictures are called what the attacker wants.",
    "safe_set_poison_share": "Which share of the first safe set are poisons.",
    "safe_set_poison_recall": "Which share of all poisons is in the first safe set.",
    "safe_set_auroc": "How well the similarity behind the first safe set tells poisons from clean pairs. 50 is chance.",
    "last_safe_set_poison_share": "Which share of the last safe set are poisons.",
    "resistivity_trigger": "How little the trigger moves a picture's embedding: their cosine. 100 is not at all.",
    "auroc": "How well the score separates bad from good. 100 is perfect, 50 is chance, below 50 is upside down.",
    "detection_accuracy": "How often a model is judged rightly, with an alarm where p is at most 0.05.",
    "target_f1": "F1 of the flagged classes: 2 TP / (2 TP + FP + FN) over all models.",
    "cross_entropy": "Of the stated probability of a backdoor, in nats. Lower is better; always one half gives 0.69.",
    "brier": "Squared error of the stated probability. Lower is better; always one half gives 0.25.",
    "false_alarms": "Share of the clean models that raise an alarm.",
    "uniform_p": "Kolmogorov and Smirnov's test that p-values of clean models are uniform. Near 0: they are not.",
    "clip_inspector_score": "CLIP-Inspector's score of the repaired model.",
}
