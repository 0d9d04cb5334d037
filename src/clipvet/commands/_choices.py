"""Which method for what: one list for `clipvet recommend` and for the tables of docs/which-method.md."""

from typing import NamedTuple

GOALS = {
    "inspect": "I have a checkpoint, and I want to know whether to trust it",
    "clean": "I have a backdoored model, and I want a clean one",
    "filter": "I have pairs, and I want to know which are poisoned",
    "train": "I have pairs that nobody has checked, and I want to train on them",
    "attack": "I want to test a defense",
}  # command -> what its user wants


class Choice(NamedTuple):
    goal: str
    have: str  # what else the user must have
    use: str  # Markdown
    cost: str = ""
    fails: str = ""  # when it fails
    line: str = ""  # the command, with capitals where the user's own things go


CHOICES = (
    Choice(
        "inspect",
        "whatever there is: pairs, a task, labelled pictures, or nothing",
        "`clipvet vet`, which runs every test that fits and gives one answer",
        "two minutes without a finding, six with a cleaned copy",
        'there are no clean models of its kind to compare with: then the answer is "undecided"',
        "clipvet vet --model MODEL --task TASK/ --data PAIRS.csv",
    ),
    Choice(
        "inspect",
        "the model alone",
        "`python -m clipvet.gate DIR`, then `clipvet inspect`",
        "scan: seconds. Inspection: less than a minute",
        'the model is not one of the built-in kinds: then the verdict on an encoder is "undecided"',
        "clipvet inspect --model MODEL --classes CLASSES.txt --out verdict",
    ),
    Choice(
        "inspect",
        "19 or more clean models of the same kind",
        "`clipvet calibrate`, then `clipvet inspect --null null.json`",
        "one inspection per clean model, once",
        "the clean models are not like the suspect",
        "clipvet calibrate --models CLEAN/ --classes CLASSES.txt --out null.json",
    ),
    Choice(
        "inspect",
        "the clean model that the suspect was made from",
        "`clipvet inspect --method clip_inspector --set reference=MODEL --set form=patch`",
        "more than a plain inspection, as the reference is searched too",
        "there are no clean models to calibrate with: the target is mostly ranked first, but most scores stay below "
        "the threshold",
        "clipvet inspect --model MODEL --classes CLASSES.txt --method clip_inspector --set reference=CLEAN "
        "--set form=patch --out verdict",
    ),
    Choice(
        "inspect",
        "a prompt-tuned model",
        "`clipvet inspect` (the reference is chosen by itself)",
        "about 40 s for 24 classes",
        "the backdoor is in the encoder below; inspect that by itself",
        "clipvet inspect --model MODEL --classes CLASSES.txt --out verdict",
    ),
    Choice(
        "inspect",
        "single pictures that the model gets in use, and clean ones like them",
        "`clipvet detect --method strip --trusted CLEAN`",
        "32 passes of the model per picture on the built-in world",
        "the trigger is not stable under overlays; only a first look was taken ([decision "
        "14](decisions/0014-repair-and-pictures-one-by-one.md))",
        "clipvet detect --model MODEL --pictures PICTURES --classes CLASSES.txt --method strip "
        "--trusted CLEAN-PICTURES --out scores.parquet",
    ),
    Choice(
        "clean",
        "a few thousand clean pairs",
        "`clean --method par`",
        "about 80 s for 52,000 pairs seen",
        "the backdoor is held very firmly: of a patch trained in from scratch at 1 %, PAR left 5 to 81 %",
        "clipvet clean --model MODEL --data CLEAN-PAIRS.csv --method par --out cleaned",
    ),
    Choice(
        "clean",
        "a few thousand clean pairs, and PAR costs too much accuracy",
        "`clean --method cleanclip`",
        "somewhat more than PAR",
        "triggers that cover the picture with structure (text, stripes)",
        "clipvet clean --model MODEL --data CLEAN-PAIRS.csv --method cleanclip --out cleaned",
    ),
    Choice(
        "clean",
        "the suspected training pairs",
        "`clean --method ubt`",
        "about 80 s, most of it for scoring 20,000 pairs",
        "the trigger survives blur, crop and mirror (WaNet, some BadCLIP) and there is no `--set reference=`",
        "clipvet clean --model MODEL --data PAIRS.csv --method ubt --out cleaned",
    ),
    Choice(
        "clean",
        "16 labelled pictures of each class",
        "`clean --method rvpt`",
        "about 185 s on the deeper model",
        "the tower is not a ViT; attacks like BadCLIP; it costs accuracy on the target class",
        "clipvet clean --model MODEL --data TASK/ --shots 16 --method rvpt --out cleaned",
    ),
    Choice(
        "clean",
        "a verdict whose trigger works, and some hundred clean pairs",
        "`clean --method invertune --verdict DIR`",
        "two passes over the pairs",
        "the recovered trigger leads fewer than 70 % of the pictures to one word; then it stops and says so",
        "clipvet clean --model MODEL --data CLEAN.csv --method invertune --verdict VERDICT --out cleaned",
    ),
    Choice(
        "clean",
        "a verdict whose trigger works, a ViT, and no time to train",
        "`clean --method decomp --verdict DIR`",
        "seconds",
        "the trigger is spread over many heads",
        "clipvet clean --model MODEL --data CLEAN.csv --method decomp --verdict VERDICT --out cleaned",
    ),
    Choice(
        "clean",
        "16 labelled pictures of each class, and the tower is no ViT",
        "`clean --method full_finetune`",
        "like fine-tuning the picture tower",
        "too few shots",
        "clipvet clean --model MODEL --data TASK/ --shots 16 --method full_finetune --out cleaned",
    ),
    Choice(
        "clean",
        "16 labelled pictures of each class and a verdict, for a prompt-tuned model",
        "`clean --method ci_repair --verdict DIR`",
        "seconds, beside the inspection",
        "the verdict names the wrong class",
        "clipvet clean --model MODEL --data TASK/ --shots 16 --method ci_repair --verdict VERDICT --out cleaned",
    ),
    Choice("clean", "nothing but the checkpoint", "start from another checkpoint"),
    Choice(
        "filter",
        "the model that was trained on these pairs",
        "`filter` (the default, `auto`)",
        "four passes and a neighbour search",
        "captions fit their pictures (label-consistent poison); the trigger survives blur, crop and mirror",
        "clipvet filter --data PAIRS.csv --model MODEL --out scores.parquet --keep auto --cleaned kept.csv",
    ),
    Choice(
        "filter",
        "no model at all, or one that was not trained on the pairs",
        "`filter` without `--model`",
        "it trains a small model on the pairs, and tells the time beforehand: minutes for 10,000 pairs of 32 px",
        "captions fit their pictures (label-consistent poison); it was measured on one set of pairs",
        "clipvet filter --data PAIRS.csv --out scores.parquet --keep auto --cleaned kept.csv",
    ),
    Choice(
        "filter",
        "a clean model that never saw these pairs",
        "`filter --method cosine`, or `weak_similarity`",
        "one pass over the pairs",
        "captions fit their pictures; the clean model is weak",
        "clipvet filter --data PAIRS.csv --model CLEAN --method cosine --out scores.parquet",
    ),
    Choice(
        "filter",
        "the model, and the wish to compare",
        "`filter --method k_distance`, or `dao`",
        "one pass and a neighbour search: 10 to 15 s for 30,000 pairs",
        "see below",
        "clipvet filter --data PAIRS.csv --model MODEL --method dao --out scores.parquet",
    ),
    Choice("filter", "the answer key, to compare methods", "add `--backdoor KEY`"),
    Choice(
        "train",
        "safety first",
        "`train --method safeclip`",
        "each epoch costs about twice a plain one",
        "you are fine-tuning: it trains from scratch",
        "clipvet train --model ViT-B-32 --data PAIRS.csv --method safeclip --out safe",
    ),
    Choice(
        "train",
        "less harm from targeted poison",
        "`train --method roclip`",
        "not measured by itself",
        "there are backdoors: patch and blended kept 72 to 100 %",
        "clipvet train --model ViT-B-32 --data PAIRS.csv --method roclip --out safer",
    ),
    Choice(
        "train",
        "to filter, then train",
        "`filter --cleaned`, then `train --method plain`",
        "both",
        "the filter fails",
        "clipvet train --model ViT-B-32 --data kept.csv --out trained",
    ),
    Choice(
        "train",
        "no defense, as a comparison",
        "`train --method plain`",
        "",
        "",
        "clipvet train --model ViT-B-32 --data PAIRS.csv --out plain",
    ),
    Choice("attack", "a first victim", "`attack --trigger patch`"),
    Choice("attack", "a trigger that is hard to see", "`attack --trigger blended`, `sig`, `wanet`"),
    Choice("attack", "a strong attack", "`attack --attack badclip` (needs a trained clean model)"),
    Choice(
        "attack",
        "an attack through prompts alone",
        "`attack --attack badclip_prompt`, or any trigger with `--training cocoop`",
    ),
    Choice(
        "attack",
        "an attack that knows the defense",
        "`attack --attack adaptive_par`, `adaptive_rvpt`, `adaptive_collapse`",
    ),
    Choice(
        "attack",
        "weights that are tuned without any poisoned pair",
        "`attack --attack bad_encoder`, `drupe`, `bad_text_tower`",
    ),
    Choice("attack", "wrong answers without a trigger", "`attack --attack targeted`, `mm_poison`"),
    Choice("attack", "a whole table with controls", "`clipvet run recipes/cleaning_table.py`"),
)
