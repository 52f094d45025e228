"""Manifests and cards of the bundles `identity` and `makeup`, from training/measured/*.json."""

from __future__ import annotations

from pathlib import Path

from . import identity, manifest

SYNTHETIC = """## What it must not be used for

- Showing people as they are not to anyone who is not told. What the program writes is marked as synthetic (IPTC digital source type), and its
  page says so; keep both.
- Faces of others without their consent."""
BIOMETRIC = """## What it must not be used for

- Finding out who somebody is without his explicit consent: an embedding is biometric data (GDPR, Article 9). The daemon never makes one;
  `visaged embed` does, on pictures that its user gives it.
- Watch lists, policing, access to anything that matters: one in a hundred strangers passes the looser threshold, one in a thousand the
  stricter one, and people who look alike pass more often."""


FACES_OF_OTHERS = """
- Showing somebody's face where he is not, or anybody as he is not, to people who are not told. What the program writes is marked as synthetic
  (IPTC digital source type), and its page says so; keep both.
- Hiding somebody from those who know him: hair, clothes, voice and place tell more than a face. An avatar is for a picture that leaves the
  device without its owner's face, not a protection of witnesses."""
AVATARS = """### Avatars

`avatars.png` holds synthetic people (SFHQ, drawn by a generator: nobody's faces), 128x128 each, side by side: grown-up by the judge's word, calm by
`derl`'s, seen from the front, as unlike each other as the embedding can tell; chosen from those that took part in training.

"""
GENERATOR_BY = ", `{run} gallery`, `{run} train swap`, `{run} quantize swap`, `{run} evaluate swap`"


def _avatars(folder: Path) -> int:
    from PIL import Image

    with Image.open(folder / "avatars.png") as picture:
        return picture.width // 128


def _swapped_accuracy(s: dict, command: str) -> list[dict]:
    protocol = f"{s['int8']['exchanged']['pairs']} pairs of strangers left out of training (LFW, London, SFHQ)"
    metrics = (
        ("exchanged", "nearer_to_the_person"), ("exchanged", "expression_agrees"), ("exchanged", "pose_within_5_degrees"),
        ("exchanged", "landmarks_within_4_percent"), ("retrieved", "rank_1"), ("avatars", "known_again_at_far_1e2"),
        ("avatars", "known_again_as_sent"),
    )  # fmt: skip
    return [
        {"dataset": "LFW, London, SFHQ", "protocol": protocol, "metric": f"{part}: {key}", "float": s["float"][part][key],
         "int8": s["int8"][part][key], "command": command}
        for part, key in metrics
    ]  # fmt: skip


def _picture(name: str, shape: list[int], colour: str, normalisation: str, **more) -> dict:
    return {
        "name": name, "shape": shape, "dtype": "f32", "layout": "NCHW", "colour": colour, "normalisation": normalisation, **more,
    }  # fmt: skip


def _sources(*rows: tuple[str, str, str]) -> list[dict]:
    return [{"source": s, "licence": licence, "use": use} for s, licence, use in rows]


def _document(name: str, version: str, task: str, licence: str, folder: Path, q: dict, **rest) -> dict:
    head = {"schema": 1, "name": name, "version": version, "task": task, "licence": licence}
    return {**head, "quantisation": q, "files": manifest.files(folder), **rest}


def generator_tables(s: dict, report) -> str:
    """What is measured of the generator, int8 beside float, and beside what it learnt photographs from."""
    percent, bent = report.percent, s["bent"]
    kinds = [s["int8"], s["float"]]

    def row(text, part, key, show=percent, of_bent=True):
        value = show(bent[key]) if of_bent and key in bent else ""
        return [text, *(show(k[part][key]) for k in kinds), value]

    plain = lambda x: f"{x:.1f}"  # noqa: E731
    rows = [
        row("nearer to the person than to the looks", "exchanged", "nearer_to_the_person"),
        row("taken for the person, at one false match in a hundred", "exchanged", "one_person_at_far_1e2"),
        row(f"first of {s['int8']['retrieved']['people']} people, from other photographs", "retrieved", "rank_1"),
        row("expression as in the looks (`derl`)", "exchanged", "expression_agrees"),
        row("pose within 5 degrees", "exchanged", "pose_within_5_degrees"),
        row("pose off, degrees", "exchanged", "pose_off_degrees", plain),
        row("five landmarks within 4 % of the eyes' distance, on average", "exchanged", "landmarks_within_4_percent"),
        row("five landmarks off, share of the eyes' distance", "exchanged", "landmarks_off", percent),
        row("one picture in for both: PSNR, dB", "returned", "psnr_db", plain),
        row("the same inside the face, dB", "returned", "psnr_in_the_face_db", plain),
    ]
    hidden = [
        [text, *(show(k["avatars"][key]) for k in kinds)]
        for text, key, show in (
            ("known again by the judge, at one false match in a hundred", "known_again_at_far_1e2", percent),
            ("the same of what the daemon sends: exchanged twice, the face alone", "known_again_as_sent", percent),
            ("expression as it was", "expression_agrees", percent),
            ("the same, exchanged twice", "expression_agrees_as_sent", percent),
            ("pose within 5 degrees", "pose_within_5_degrees", percent),
            ("five landmarks within 4 %", "landmarks_within_4_percent", percent),
        )
    ]
    by = ", ".join(f"{k} {percent(v)}" for k, v in s["int8"]["exchanged"]["by_pack"].items())
    known = s["int8"]["retrieved"]["rank_1_of_the_photograph_itself"]
    judge, walk = s["judge"], s["walk"]
    return f"""{s["int8"]["exchanged"]["pairs"]} pairs of strangers among LFW's, London's and SFHQ's people left out of training. Who is nearer to whom is said by an embedding
that took no part in training (`faceres` of npm's @vladmandic/human; on the people left out {percent(judge["accuracy"])} right, {percent(judge["tar_at_far_1e2"])} true accepts at one false in a
hundred). Landmarks and pose are those of the 68 landmarks that also made the bent photographs.

{report.table(["", "int8", "float", "bent photographs"], rows)}

Nearer to the person, by where the person's picture is from: {by}. The judge names {percent(known)} of the same people first from the photographs
themselves. Int8 against float: {s["float_int8_db"]:.1f} dB. A walk from one person to another in {walk["steps"]} steps of the generator's code: the largest step takes {percent(walk["largest_step_share"])} of the way
on average ({percent(1 / walk["steps"])} would be even).

Avatars in place of {s["int8"]["avatars"]["faces"]} people:

{report.table(["", "int8", "float"], hidden)}
"""


def generator_section(s: dict, q: dict, report) -> str:
    learnt = ", ".join(f"{n} {k}" for k, n in s["learnt_from"].items())
    took = s.get("training", {})
    return f"""## The generator

{q["generator_mmac"]} MMAC. Inputs `person` and `attributes` [1, 3, 128, 128]: aligned RGB faces, (x - 128) / 64; `who` [1, 128, 1, 1]: the person's embedding, of length 1.
Output `change`: what to add to `attributes`, in the same units, so that it shows the person with the pose, expression, light and surroundings that it has.

{generator_tables(s, report)}
### What is the paper's, and what is not

The paper's: I says who, A what else, G makes the face of both; a picture of the same person is to be reconstructed in full, of another in part; D judges looks; features of I
(in the place of C) are matched. Ours: a second encoder looks at the person's picture, because 128 numbers do not hold a stranger's face at this size of network; A gives a
picture at every size instead of one code, so there is no KL loss and no prior to draw from; a mask lays the face over the second picture; rendered people who change places give exact answers, photographs bent
onto each other by their landmarks rough ones; `derl` holds the expression.

### Training

{learnt}. {took.get("pictures", "?")} pictures shown, of twelve three rendered, seven bent photographs, two of one person, going on from the weights of an earlier schedule (`training/README.md`). One thread, bfloat16. Quantised by {q["generator_calibration"]}.

"""


def identity_documents(folder: Path, version: str, m: dict, q: dict, report) -> tuple[dict, str]:
    swapped = report.measured("swap") if (folder / "avatars.png").exists() else None
    f, i, teacher = m["float"], m["int8"], m["descriptor"]
    command = f"{report.RUN} evaluate identity"
    protocol = f"LFW (grey, aligned), {i['people']} people left out of training, {i['pairs'][0]} pairs of one person and {i['pairs'][1]} of two"
    sources = _sources(
        ("npm @vladmandic/face-api 1.7.15, dlib's face descriptor (CC0 by its author)", "MIT", "first weights, teacher"),
        ("muxspace/facial_expressions @ 5fb9c13afac0 (LFW)", "pictures: research only", "training, calibration, measurement"),
        ("FER+ (pictures: FER-2013)", "pictures: research only", "training, calibration"),
        ("SFHQ", "MIT", "training, calibration"),
        ("webmorphR.stim London and Canada", "CC BY 4.0", "training, calibration"),
    )
    generator = ["person", "attributes"] if swapped else []
    if swapped:
        sources += _sources(
            ("MakeHuman", "CC0 1.0", "renders: training of the generator"),
            ("VALID avatars, ICT Face Model Light", "MIT", "renders: training of the generator"),
            ("SFHQ", "MIT", "the avatars themselves; measurement of the generator"),
            ("webmorphR.stim London", "CC BY 4.0", "measurement of the generator (people left out)"),
            ("face-api.js 68-point landmarks", "MIT", "bends photographs onto each other; measurement"),
            ("npm @vladmandic/human 3.3.6, faceres", "MIT", "judge of identity; grown-ups among the avatars"),
        )
    thresholds = {k: i[k] for k in ("threshold_far_1e2", "threshold_far_1e3")}
    document = _document(
        "identity", version, "identity", "MIT", folder, q,
        verification={**thresholds, "calibrated_on": protocol},
        **({"avatars": {"file": "avatars.png", "count": _avatars(folder)}} if swapped else {}),
        inputs=[
            _picture("face", [1, 1, identity.SIDE, identity.SIDE], "luminance", "per-image", eps=identity.EPS),
            *(_picture(n, [1, 3, 128, 128], "rgb", "(x-128)/64") for n in generator),
            *([_picture("who", [1, 128, 1, 1], "embedding", "unit-length")] if swapped else []),
        ],
        outputs=[
            {"name": "embedding", "shape": [1, 128]},
            *([{"name": "change", "shape": [1, 3, 128, 128]}] if swapped else []),
        ],
        accuracy=[
            {"dataset": "LFW", "protocol": protocol, "metric": metric, "float": f[metric], "int8": i[metric], "command": command}
            for metric in ("accuracy", "tar_at_far_1e2", "tar_at_far_1e3")
        ]
        + (_swapped_accuracy(swapped, f"{report.RUN} evaluate swap") if swapped else []),
        provenance=sources,
    )  # fmt: skip
    names = {
        "accuracy": "accuracy, mean of ten folds",
        "tar_at_far_1e2": "true accepts at one false in a hundred",
        "tar_at_far_1e3": "true accepts at one false in a thousand",
    }
    rows = [[text, *(report.percent(x[k], 2) for x in (i, f, teacher))] for k, text in names.items()]
    learnt = ", ".join(f"{n} {k}" for k, n in m["learnt_from"].items())
    took = m.get("training", {})
    card = f"""# identity

Tells whether two pictures show one person{", and gives a face another identity" if swapped else ""}: *Towards Open-Set Identity Preserving Face Synthesis* (CVPR 2018).
The encoder I: {q["mmac"]} MMAC. {"The generator, with both of its encoders: " + str(q["generator_mmac"]) + " MMAC." if swapped else "This version holds the encoder alone; the attribute encoder and the generator of the paper are not part of it."}

## Purpose and limits

Input `face` [1, 1, 112, 112]: BT.601 luminance of the aligned 128x128 face, 8 pixels off each side, then (x - mean) / (std + {identity.EPS:g}) over the
picture. Output `embedding`: 128 numbers, not normalised; divide by their length. The product of two unit embeddings is from {i["threshold_far_1e2"]} up for one
in a hundred pairs of strangers, from {i["threshold_far_1e3"]} up for one in a thousand (int8).

It was taught by dlib's descriptor, mostly with news photographs of public people of about 2005: children, dark pictures, faces turned by more
than 35 degrees and people whom news photographers rarely met are outside of what was measured.

## Verification

{protocol}. False accepts are counted over every pair of two people ({i["pictures"]} pictures).

{report.table(["", "int8", "float", "dlib's descriptor, its teacher"], rows)}

Int8 and float embeddings of one picture: cosine {m["cosine_float_int8"]} on average.

## Training

The first eleven residual blocks of dlib's descriptor with its weights, the stem summed to luminance, a new last layer. Loss: mean squared error to the
descriptor's centred answer, InfoNCE within the batch, and a softmax with margin over LFW's names (as the paper trains I, by its name). Faces: {learnt};
{took.get("pictures", "?")} pictures shown. One thread, float32.

{generator_section(swapped, q, report) if swapped else ""}{AVATARS if swapped else ""}## Quantisation

{q["scheme"]}. Weights {q["weights"]}; activations {q["activations"]}; {q["calibration"]}. Float: {q["float_parts"]}. `model.tflite` holds the same integers and scales.

## Data and licences

{report.table(["source", "licence", "use"], [[s["source"], s["licence"], s["use"]] for s in sources])}

{BIOMETRIC}{FACES_OF_OTHERS if swapped else ""}

## Made by

`{report.RUN} faces`, `{report.RUN} train identity`, `{report.RUN} quantize identity`, `{command}`{GENERATOR_BY.format(run=report.RUN) if swapped else ""}, `{report.RUN} report identity`.
"""
    return document, card


def makeup_documents(folder: Path, version: str, m: dict, q: dict, report) -> tuple[dict, str]:
    r, photographs = m["renders"], m["photographs"]
    f, i = r["float"], r["int8"]
    command = f"{report.RUN} evaluate makeup"
    protocol = f"{r['faces']} rendered faces of {r['people']} people left out of training, random styles, the right answer known"
    sources = _sources(
        ("MakeHuman", "CC0 1.0", "renders: training, calibration, measurement"),
        ("VALID avatars", "MIT", "renders: training, calibration, measurement"),
        ("SFHQ", "MIT", "training, calibration"),
        ("webmorphR.stim London and Canada", "CC BY 4.0", "training, calibration, measurement"),
        ("face-api.js 68-point landmarks", "MIT", "where lips, eyes and brows are, when make-up is painted"),
    )
    names = {
        "apply_gain_db": ("applied: gain over the bare face, inside what is made up", "dB"),
        "bare_gain_db": ("bared: gain over the made-up face, inside", "dB"),
        "apply_outside": ("applied: change outside", "grey levels"),
        "bare_outside": ("bared: change outside", "grey levels"),
        "back_db": ("bared after applied, against the bare face", "dB"),
        "bare_stays_db": ("a bare face bared, against itself", "dB"),
    }
    blank = {"shape": [1, 3, 128, 128], "colour": "rgb", "normalisation": "none"}
    document = _document(
        "makeup", version, "makeup", "MIT", folder, q,
        inputs=[_picture(n, **blank) for n in ("face", "reference")],
        outputs=[{"name": n, "shape": [1, 3, 128, 128]} for n in ("applied", "bare")],
        accuracy=[
            {"dataset": "renders", "protocol": protocol, "metric": text, "float": f[k], "int8": i[k], "unit": unit, "command": command}
            for k, (text, unit) in names.items()
        ],
        provenance=sources,
    )  # fmt: skip
    rows = [[f"{text}, {unit}", i[k], f[k]] for k, (text, unit) in names.items()]
    colour = [[layer, i["ciede2000"][layer]["mean"], i["ciede2000"][layer]["of_the_bare_face"]] for layer in ("lips", "shadow")]
    groups = [[g, v] for g, v in i["skin_shift_by_group"].items()]
    kept = ""
    if "distance_made_up" in photographs:
        kept = f"""dlib's descriptor, which took no part in training, sees {report.percent(photographs["one_person"])} of the made-up faces as the same person (distance below
0.6; {photographs["distance_made_up"]} on average, {photographs["distance_crop_jitter"]} between two crops of one picture; similarity {photographs["similarity_of_jitters"]} of that between the crops)."""
    counts = ", ".join(f"{n} {k}" for k, n in m["faces"].items())
    card = f"""# makeup

Puts the make-up of a reference on a face, and takes make-up off: *PairedCycleGAN* (CVPR 2018). {q["mmac"]} MMAC for both nets together.

## Purpose and limits

Inputs `face` and `reference` [1, 3, 128, 128]: aligned RGB faces, 0..255. Outputs: `applied` and `bare`, what to add to `face`, in grey levels; a strength between 0
and 1 is a factor on them. `bare` does not depend on `reference`.

It knows lipstick, eye shadow, eye liner, blush, darkened brows and foundation, as they are painted by `visaged_training/cosmetics.py`: soft, even, symmetric. It does
not know face paint, glitter, lashes, tattoos, stage make-up, nor make-up on faces turned by more than 35 degrees. A reference in coloured light gives its
colours with that light. What people wear in real photographs was not known when it was trained, so `bare` takes off painted make-up better than real.

## Measured on renders

{protocol}. Inside: where a layer covers at least a tenth.

{report.table(["", "int8", "float"], rows)}

Colour of the result against the right answer (mean colour of the region, CIEDE2000):

{report.table(["region", "applied", "without applying"], colour)}

Shift of the skin's mean colour against the right answer, by the ancestry that VALID gives its heads (CIEDE2000):

{report.table(["group", "shift"], groups)}

Int8 against float: {r["float_int8_db"]["apply"]} dB (applied), {r["float_int8_db"]["bare"]} dB (bare).

## On photographs

{photographs["faces"]} pictures of London people left out of training, wearing the styles of rendered references. A face as it came, bared: {photographs["bare_stays_db"]} dB against
itself. {kept}

## What is the paper's, and what is not

The paper's: G(source, reference), F(source), F(G(x, y)) = x, a judge of (reference, result) pairs. Ours: both nets give a delta image; make-up is painted on faces
whose light and layers are known, so that the right answer is known for every source and style, and no pair has to be warped; the paper's judges of single faces and
its separate nets for eyes, lips and skin are left out.

## Training

Faces: {counts} ({report.percent(0.6, 0)} of each step rendered). {m.get("training", {}).get("pictures", "?")} pictures shown. One thread, float32.

## Quantisation

{q["scheme"]}. Weights {q["weights"]}; activations {q["activations"]}; {q["calibration"]}. Float: {q["float_parts"]}. `model.tflite` holds the same integers and scales.

## Data and licences

{report.table(["source", "licence", "use"], [[s["source"], s["licence"], s["use"]] for s in sources])}

{SYNTHETIC}

## Made by

`{report.RUN} cosmetics`, `{report.RUN} train makeup`, `{report.RUN} quantize makeup`, `{command}`, `{report.RUN} report makeup`.
"""
    return document, card
