//! `visaged embed` and `visaged synth` as a user runs them, on the stand-in bundles of `tests/data/bundles`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn visaged(args: &[&str]) -> Output {
    // No store of this machine, no configuration of this user.
    let store = ("VISAGED_MODELS__STORE", "");
    Command::new(env!("CARGO_BIN_EXE_visaged"))
        .env_remove("VISAGED_CONFIG")
        .env(store.0, store.1)
        .args(args)
        .output()
        .unwrap()
}

fn data(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path).display().to_string()
}

fn face(name: &str) -> String {
    data(&format!("faces/{name}"))
}

fn bundle(name: &str) -> String {
    data(&format!("bundles/{name}"))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn lines(output: &Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn embed(args: &[&str]) -> Output {
    visaged(&[&["embed", "--bundle", &bundle("identity")][..], args].concat())
}

fn embedding(face: &Value) -> Vec<f64> {
    face["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn similarity(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn embed_gives_one_line_a_picture_with_the_contracts_keys_and_a_direction_for_each_face() {
    let output = embed(&["--json", &data("faces")]);
    assert!(output.status.success(), "{}", stderr(&output));
    let lines = lines(&output);
    let names: Vec<&str> = lines.iter().map(|l| l["path"].as_str().unwrap()).collect();
    assert!(names.len() == 5 && names.is_sorted(), "{names:?}");
    for line in &lines {
        let mut keys: Vec<&String> = line.as_object().unwrap().keys().collect();
        keys.sort();
        assert_eq!(keys, ["faces", "frame", "path"]);
        let [face] = line["faces"].as_array().unwrap().as_slice() else { panic!("one face: {line}") };
        let mut keys: Vec<&String> = face.as_object().unwrap().keys().collect();
        keys.sort();
        assert_eq!(keys, ["box", "embedding"]);
        let values = embedding(face);
        assert_eq!((values.len(), face["box"].as_array().unwrap().len()), (128, 4));
        assert!((similarity(&values, &values) - 1.0).abs() < 1e-4);
    }
}

#[test]
fn embed_keeps_the_order_on_any_number_of_threads() {
    let (a, b) = (face("sfhq_0370.jpg"), face("sfhq_0000.jpg"));
    let mut args = vec!["--json", "--crops", "--threads", "5"];
    args.extend((0..40).map(|i| if i % 2 == 0 { a.as_str() } else { b.as_str() }));
    let lines = lines(&embed(&args));
    assert_eq!(lines.len(), 40);
    for (i, line) in lines.iter().enumerate() {
        assert_eq!(line["path"].as_str().unwrap(), [&a, &b][i % 2]);
        assert_eq!(line["faces"], lines[i % 2]["faces"]);
    }
    assert_eq!(lines[0]["faces"][0]["box"], Value::Null);
    assert_ne!(lines[0]["faces"], lines[1]["faces"]);
}

#[test]
fn embed_goes_on_past_a_picture_that_cannot_be_read_and_fails_in_the_end() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(face("sfhq_0000.jpg"), folder.path().join("a.jpg")).unwrap();
    fs::write(folder.path().join("b.jpg"), "no picture").unwrap();
    fs::copy(face("sfhq_0001.jpg"), folder.path().join("c.jpg")).unwrap();
    let output = embed(&["--json", &folder.path().display().to_string()]);
    assert_eq!((output.status.code(), lines(&output).len()), (Some(1), 2));
    assert!(stderr(&output).contains("b.jpg"), "{}", stderr(&output));
}

#[test]
fn embed_says_to_people_how_much_a_face_is_like_the_first_one() {
    let picture = face("sfhq_0000.jpg");
    let output = embed(&[&picture, &picture]);
    let text = String::from_utf8(output.stdout).unwrap();
    let [first, second] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
    assert!(first.ends_with("the first face"), "{first}");
    assert!(second.ends_with("similarity 1.00 to the first face: the same person"), "{second}");
}

/// A folder with one picture for each case to write to.
struct Out(tempfile::TempDir);

impl Out {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn name(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn picture(&self, name: &str) -> image::RgbImage {
        image::open(self.path(name)).unwrap().to_rgb8()
    }
}

fn makeup(args: &[&str]) -> Output {
    visaged(&[&["synth"][..], &args[..1], &["--bundle", &bundle("makeup")], &args[1..]].concat())
}

fn opened(path: &str) -> image::RgbImage {
    image::open(path).unwrap().to_rgb8()
}

#[test]
fn synth_makeup_changes_the_face_towards_the_reference_and_nothing_else_and_marks_it() {
    let (out, input, reference) = (Out::new(), face("sfhq_0000.jpg"), face("london_004_smile.jpg"));
    let output = makeup(&["makeup", &input, "--reference", &reference, "-o", &out.name("on.png")]);
    assert!(output.status.success(), "{}", stderr(&output));
    let (before, after) = (opened(&input), out.picture("on.png"));
    assert_eq!(before.dimensions(), after.dimensions());
    assert_ne!(before, after);
    for x in 0..before.width() {
        assert_eq!(before.get_pixel(x, 0), after.get_pixel(x, 0));
    }
    let bytes = fs::read(out.path("on.png")).unwrap();
    let mark = b"compositeWithTrainedAlgorithmicMedia";
    assert!(bytes.windows(mark.len()).any(|w| w == mark));
}

#[test]
fn synth_makeup_at_strength_zero_gives_the_picture_back_and_at_half_lies_between() {
    let (out, input, reference) = (Out::new(), face("sfhq_0000.jpg"), face("london_004_smile.jpg"));
    let at = |strength: &str, name: &str| {
        let to = out.name(name);
        let output = makeup(&["makeup", &input, "--reference", &reference, "--strength", strength, "-o", &to]);
        assert!(output.status.success(), "{}", stderr(&output));
        out.picture(name)
    };
    let before = opened(&input);
    let (none, half, all) = (at("0", "0.png"), at("0.5", "5.png"), at("1", "1.png"));
    assert_eq!(none, before);
    let change = |after: &image::RgbImage| {
        after.as_raw().iter().zip(before.as_raw()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>() as f64
    };
    let ratio = change(&half) / change(&all);
    assert!((0.4..0.6).contains(&ratio), "{ratio}");
    let refused = makeup(&["makeup", &input, "--reference", &reference, "--strength", "1.5", "-o", &out.name("x.png")]);
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn synth_makeup_of_regions_adds_up_and_other_words_are_bad_usage() {
    let (out, input, reference) = (Out::new(), face("sfhq_0001.jpg"), face("sfhq_0370.jpg"));
    let command = |regions: &str, strength: &str| {
        let to = out.name("crop.png");
        makeup(&[
            "makeup",
            "--crops",
            &input,
            "--reference",
            &reference,
            "--regions",
            regions,
            "--strength",
            strength,
            "-o",
            &to,
        ])
    };
    let on = |regions: &str, strength: &str| {
        let output = command(regions, strength);
        assert!(output.status.success(), "{}", stderr(&output));
        out.picture("crop.png")
    };
    let [lips, eyes, skin, all] = ["lips", "eyes", "skin", "lips,eyes,skin"].map(|regions| on(regions, "1"));
    let crop = on("lips", "0");
    assert_eq!(crop.dimensions(), (128, 128));
    assert!(lips != crop && lips != eyes && eyes != skin && lips != all);
    for at in 0..crop.as_raw().len() {
        let change = |picture: &image::RgbImage| i32::from(picture.as_raw()[at]) - i32::from(crop.as_raw()[at]);
        let (sum, whole) = (change(&lips) + change(&eyes) + change(&skin), change(&all));
        // Where nothing saturates; each is rounded by itself.
        let saturated = [&lips, &eyes, &skin, &all].iter().any(|p| [0, 255].contains(&p.as_raw()[at]));
        assert!(saturated || sum.abs_diff(whole) <= 2, "{sum} for {whole}");
    }
    let output = command("hair", "1");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("lips, eyes, skin"), "{}", stderr(&output));
}

#[test]
fn synth_bare_takes_redness_off_and_knows_no_reference() {
    let (out, input) = (Out::new(), face("sfhq_0000.jpg"));
    let output = makeup(&["bare", &input, "-o", &out.name("bare.png")]);
    assert!(output.status.success(), "{}", stderr(&output));
    let mean = |picture: &image::RgbImage| {
        picture.pixels().map(|p| i64::from(p[0]) - i64::from(p[1])).sum::<i64>() as f64
            / f64::from(picture.width() * picture.height())
    };
    assert!(mean(&out.picture("bare.png")) < mean(&opened(&input)) - 0.5);
    let output = makeup(&["bare", &input, "--reference", &input, "-o", &out.name("x.png")]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_reference_without_a_face_and_a_face_number_beyond_those_there_are_named() {
    let (out, input) = (Out::new(), face("sfhq_0000.jpg"));
    let flat = out.name("flat.png");
    image::RgbImage::from_pixel(300, 200, image::Rgb([90, 120, 90])).save(&flat).unwrap();
    let to = out.name("out.png");
    let output = makeup(&["makeup", &input, "--reference", &flat, "-o", &to]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("flat.png") && stderr(&output).contains("no face"), "{}", stderr(&output));
    for command in [vec!["makeup", &input, "--reference", &input], vec!["bare", &input], vec!["neutral", &input]] {
        let mut args = command.clone();
        args.extend(["--face", "3", "-o", &to]);
        let output =
            if command[0] == "neutral" { visaged(&[&["synth"][..], &args[..]].concat()) } else { makeup(&args) };
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert!(stderr(&output).contains("the picture shows 1 face"), "{}", stderr(&output));
    }
    assert!(!Path::new(&to).exists());
}

#[test]
fn the_second_face_of_a_picture_is_changed_and_the_first_is_not() {
    let (out, one) = (Out::new(), opened(&face("sfhq_0000.jpg")));
    let (width, height) = one.dimensions();
    let small = image::imageops::resize(&one, width * 3 / 4, height * 3 / 4, image::imageops::FilterType::Triangle);
    let mut both = image::RgbImage::from_pixel(2 * width, height, image::Rgb([128, 128, 128]));
    image::imageops::replace(&mut both, &one, 0, 0);
    image::imageops::replace(&mut both, &small, i64::from(width), 0);
    both.save(out.path("both.png")).unwrap();
    for (which, changed) in [("0", 0), ("1", 1)] {
        let output = makeup(&["bare", &out.name("both.png"), "--face", which, "-o", &out.name("out.png")]);
        assert!(output.status.success(), "{}", stderr(&output));
        let after = out.picture("out.png");
        let differs = |from: u32| {
            let columns = (from..from + width).flat_map(|x| (0..height).map(move |y| (x, y)));
            columns.into_iter().any(|(x, y)| both.get_pixel(x, y) != after.get_pixel(x, y))
        };
        assert_eq!([differs(0), differs(width)], [changed == 0, changed == 1], "--face {which}");
    }
}

fn identity(args: &[&str]) -> Output {
    visaged(&[&["synth", "identity", "--bundle", &bundle("identity")][..], args].concat())
}

#[test]
fn synth_identity_changes_the_face_by_the_person_and_nothing_else_and_marks_it() {
    let (out, a, b) = (Out::new(), face("sfhq_0370.jpg"), face("sfhq_0000.jpg"));
    let output = identity(&["--identity", &a, "--attributes", &b, "-o", &out.name("a.png")]);
    assert!(output.status.success(), "{}", stderr(&output));
    let (before, after) = (opened(&b), out.picture("a.png"));
    assert_eq!(before.dimensions(), after.dimensions());
    assert!(before != after);
    let (width, height) = before.dimensions();
    for (x, y) in [(0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1)] {
        assert_eq!(before.get_pixel(x, y), after.get_pixel(x, y));
    }
    let bytes = fs::read(out.path("a.png")).unwrap();
    let mark = b"compositeWithTrainedAlgorithmicMedia";
    assert!(bytes.windows(mark.len()).any(|part| part == mark));
}

#[test]
fn synth_identity_gives_another_face_for_each_avatar_and_crops_are_128_pixels() {
    let (out, b) = (Out::new(), face("sfhq_0000.jpg"));
    for avatar in ["0", "1"] {
        let to = out.name(&format!("{avatar}.png"));
        let output = identity(&["--avatar", avatar, "--attributes", &b, "--crops", "-o", &to]);
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let (first, second) = (out.picture("0.png"), out.picture("1.png"));
    assert_eq!((first.dimensions(), second.dimensions()), ((128, 128), (128, 128)));
    assert!(first != second);
}

#[test]
fn synth_identity_takes_one_person_and_says_how_many_avatars_there_are() {
    let (out, b) = (Out::new(), face("sfhq_0000.jpg"));
    let to = out.name("x.png");
    let output = identity(&["--avatar", "2", "--attributes", &b, "-o", &to]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("--avatar 2") && said.contains("holds 2") && said.lines().count() == 1, "{said}");
    for wrong in
        [&["--attributes", &b, "-o", &to][..], &["--avatar", "0", "--identity", &b, "--attributes", &b, "-o", &to]]
    {
        assert_eq!(identity(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn without_a_bundle_embed_and_make_up_say_which_is_missing_and_what_to_do() {
    let (out, picture) = (Out::new(), face("sfhq_0000.jpg"));
    let to = out.name("x.png");
    let cases = [
        ("identity", vec!["embed", "--json", &picture]),
        ("makeup", vec!["synth", "makeup", &picture, "--reference", &picture, "-o", &to]),
        ("makeup", vec!["synth", "bare", &picture, "-o", &to]),
    ];
    for (name, args) in cases {
        let there = option_env!("VISAGED_BUILD_BUNDLES").unwrap_or_default().contains(name);
        let output = visaged(&args);
        assert_eq!(output.status.success(), there, "{args:?}: {}", stderr(&output));
        if !there {
            let said = stderr(&output);
            assert!(said.contains(name) && said.contains("--bundle") && output.stdout.is_empty(), "{said}");
        }
    }
}

#[test]
fn a_bundle_of_another_task_is_refused_by_name() {
    let output = visaged(&["embed", "--bundle", &bundle("makeup"), "--crops", &face("sfhq_0000.jpg")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("makeup bundle where a identity bundle is needed"), "{}", stderr(&output));
}

#[test]
fn the_stand_in_bundles_verify_and_are_listed_with_what_runs_in_int8() {
    let output = visaged(&["models", "verify", "--json", &bundle("identity"), &bundle("makeup")]);
    assert!(output.status.success(), "{}", stderr(&output));
    for line in lines(&output) {
        assert_eq!(line["verified"], true, "{line}");
        assert_eq!(line["int8"]["left"].as_object().map(serde_json::Map::len), Some(0), "{line}");
    }
}
