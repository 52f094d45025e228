//! `visaged analyze PATH...`: pictures, folders, GIFs and clips to one line a picture, in order, on all cores.

use std::path::Path;

use clap::Args;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::Failure;
use super::models::BundleArgs;
use super::stream::{self, PictureArgs, Worker, place, rounded};
use crate::expression::derl::{Derl, DerlModel};
use crate::expression::{Emotion, Probabilities, Reading};
use crate::face::align::align;
use crate::face::detect::{DetectOptions, Detector, DetectorModel};
use crate::face::{AlignedFace, Face};
use crate::frame::RgbImage;

/// Find faces in pictures and read their emotions: one line a picture.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  visaged analyze portrait.jpg
  visaged analyze --json holiday/ clip.gif > faces.jsonl
  visaged analyze --crops --json crops/    each picture is one face already cropped

A folder is read with all its sub-folders, sorted by name. A picture that cannot be read is reported on stderr and the
rest goes on; the exit status is then 1.")]
pub struct AnalyzeArgs {
    /// Each picture is one face already cropped: no detection, no alignment; any size, read at 64x64
    #[arg(long)]
    crops: bool,
    #[command(flatten)]
    pictures: PictureArgs,
    #[command(flatten)]
    bundles: BundleArgs,
}

enum Models {
    Crops(DerlModel),
    Whole(DerlModel, DetectorModel),
}

/// Runs the subcommand.
///
/// # Errors
/// [`Failure`], exit 1, where a bundle is refused or a picture could not be read.
pub fn run(args: &AnalyzeArgs) -> Result<(), Failure> {
    let derl = args.bundles.derl_model()?;
    let models = if args.crops { Models::Crops(derl) } else { Models::Whole(derl, args.bundles.detector_model()?) };
    stream::run(&args.pictures, || Analyst::new(args, &models), |line| line)
}

/// One thread's networks and buffers.
struct Analyst {
    json: bool,
    detector: Option<Detector>,
    derl: Derl,
    faces: Vec<Face>,
    aligned: AlignedFace,
    reading: Reading,
}

/// A face and what was read from it.
struct Found {
    face: Option<Face>,
    emotion: Emotion,
    probabilities: Probabilities,
    neutrality: f32,
}

impl Analyst {
    fn new(args: &AnalyzeArgs, models: &Models) -> Result<Self, Failure> {
        let (derl, detector) = match models {
            Models::Crops(derl) => (derl, None),
            Models::Whole(derl, detector) => {
                let options = DetectOptions { min_face_px: args.pictures.min_face, ..DetectOptions::still(detector) };
                (derl, Some(Detector::new(detector, options)))
            }
        };
        Ok(Self {
            json: args.pictures.json,
            detector,
            derl: Derl::new(derl).map_err(Failure::failed)?,
            faces: Vec::new(),
            aligned: AlignedFace::default(),
            reading: Reading::default(),
        })
    }

    fn faces(&mut self, picture: &RgbImage) -> Result<Vec<Found>, String> {
        let Some(detector) = &mut self.detector else {
            self.derl.read_crop(picture, &mut self.reading).map_err(|e| e.to_string())?;
            return Ok(vec![self.found(None)]);
        };
        detector.detect(picture, &mut self.faces).map_err(|e| e.to_string())?;
        let mut found = Vec::with_capacity(self.faces.len());
        for i in 0..self.faces.len() {
            let face = self.faces[i];
            align(picture, &face.landmarks, &mut self.aligned).map_err(|e| e.to_string())?;
            self.derl.read(&self.aligned, &mut self.reading).map_err(|e| e.to_string())?;
            found.push(self.found(Some(face)));
        }
        Ok(found)
    }

    fn found(&self, face: Option<Face>) -> Found {
        let probabilities = self.reading.probabilities;
        Found { face, emotion: probabilities.top(), probabilities, neutrality: self.reading.neutrality }
    }
}

impl Worker for Analyst {
    type Seen = String;

    fn look(&mut self, path: &Path, frame: u64, picture: &RgbImage) -> Result<String, String> {
        let faces = self.faces(picture)?;
        Ok(if self.json { json(path, frame, &faces) } else { human(path, frame, &faces) })
    }
}

#[derive(Serialize)]
struct PictureLine<'a> {
    path: std::borrow::Cow<'a, str>,
    frame: u64,
    faces: Vec<FaceEntry>,
}

#[derive(Serialize)]
struct FaceEntry {
    #[serde(rename = "box")]
    rect: Option<[f64; 4]>,
    landmarks: Option<[[f64; 2]; 5]>,
    score: Option<f64>,
    emotion: &'static str,
    probabilities: ByName,
    neutrality: f64,
}

/// Probabilities under their FER+ names.
struct ByName(Probabilities);

impl Serialize for ByName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(8))?;
        for (emotion, p) in Emotion::ALL.iter().zip(self.0.0) {
            map.serialize_entry(emotion.name(), &rounded(p, 1e5))?;
        }
        map.end()
    }
}

fn json(path: &Path, frame: u64, faces: &[Found]) -> String {
    let px = |v: f32| rounded(v, 100.0);
    let entry = |found: &Found| FaceEntry {
        rect: found.face.map(|f| [px(f.rect.x), px(f.rect.y), px(f.rect.width), px(f.rect.height)]),
        landmarks: found.face.map(|f| f.landmarks.map(|p| [px(p.x), px(p.y)])),
        score: found.face.map(|f| rounded(f.score, 1e4)),
        emotion: found.emotion.name(),
        probabilities: ByName(found.probabilities),
        neutrality: rounded(found.neutrality, 1e5),
    };
    let line = PictureLine { path: path.to_string_lossy(), frame, faces: faces.iter().map(entry).collect() };
    // Numbers, names and a string: nothing in it can fail to serialise.
    let mut text = serde_json::to_string(&line).unwrap_or_default();
    text.push('\n');
    text
}

fn human(path: &Path, frame: u64, faces: &[Found]) -> String {
    let place = place(path, frame);
    if faces.is_empty() {
        return format!("{place}: no face\n");
    }
    let face = |found: &Found| {
        let rect = found
            .face
            .map(|f| format!("face at {:.0},{:.0}, {:.0}x{:.0} px: ", f.rect.x, f.rect.y, f.rect.width, f.rect.height));
        let percent = 100.0 * found.probabilities.0[found.emotion as usize];
        let (rect, name, neutrality) = (rect.unwrap_or_default(), found.emotion.name(), found.neutrality);
        format!("{place}: {rect}{name} ({percent:.0} %), neutrality {neutrality:.2}\n")
    };
    faces.iter().map(face).collect()
}
