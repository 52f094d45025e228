//! `visaged embed PATH...`: whose face it is, as an embedding, one line a picture, in order, on all cores.
//!
//! Embeddings identify people: they go to stdout and nowhere else.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Serialize, Serializer};

use super::Failure;
use super::models::{DetectorArgs, OptionalBundle};
use super::stream::{self, PictureArgs, Worker, place, rounded};
use crate::face::align::align;
use crate::face::detect::{DetectOptions, Detector, DetectorModel};
use crate::face::{AlignedFace, Face};
use crate::frame::{RgbImage, Scaler};
use crate::models::{IdentityManifest, Task};
use crate::synthesis::crop_to_aligned;
use crate::synthesis::identity::{Embedding, Identity, IdentityModel};

/// Tell whose faces are in pictures: an embedding for each, one line a picture.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  visaged embed --json holiday/ > embeddings.jsonl
  visaged embed passport.jpg party.jpg          how much each face is like the first one
  visaged embed --crops --json crops/           each picture is one face already cropped

An embedding is 128 numbers of length 1. The scalar product of two is their similarity: `visaged models list --json` and the
bundle's manifest say from where on two faces count as one person's. Embeddings identify people: treat them as you treat
names. A picture that cannot be read is reported on stderr and the rest goes on; the exit status is then 1.")]
pub struct EmbedArgs {
    /// Each picture is one face already cropped, framed as an aligned face is: no detection, no alignment
    #[arg(long)]
    crops: bool,
    #[command(flatten)]
    pictures: PictureArgs,
    #[command(flatten)]
    bundle: OptionalBundle,
    #[command(flatten)]
    detector: DetectorArgs,
}

/// Runs the subcommand.
///
/// # Errors
/// [`Failure`], exit 1, where there is no bundle, one is refused, or a picture could not be read.
pub fn run(args: &EmbedArgs) -> Result<(), Failure> {
    let (bundle, nn) = (args.bundle.load(Task::Identity)?, super::settings()?);
    let model = IdentityModel::new(bundle, nn).map_err(Failure::failed)?;
    let detector = if args.crops { None } else { Some(args.detector.model()?) };
    let mut first = None;
    let make = || Teller::new(args, &model, detector.as_ref());
    stream::run(&args.pictures, make, |seen: Seen| match args.pictures.json {
        true => seen.json(),
        false => seen.human(&mut first, model.manifest()),
    })
}

/// One thread's networks and buffers.
struct Teller {
    detector: Option<Detector>,
    identity: Identity,
    faces: Vec<Face>,
    aligned: AlignedFace,
    scaler: Scaler,
}

/// A picture and whose faces are in it.
struct Seen {
    path: PathBuf,
    frame: u64,
    faces: Vec<(Option<Face>, Embedding)>,
}

impl Teller {
    fn new(args: &EmbedArgs, model: &IdentityModel, detector: Option<&DetectorModel>) -> Result<Self, Failure> {
        let detector = detector.map(|model| {
            Detector::new(model, DetectOptions { min_face_px: args.pictures.min_face, ..DetectOptions::still(model) })
        });
        Ok(Self {
            detector,
            identity: Identity::new(model).map_err(Failure::failed)?,
            faces: Vec::new(),
            aligned: AlignedFace::default(),
            scaler: Scaler::new(),
        })
    }

    fn faces(&mut self, picture: &RgbImage) -> Result<Vec<(Option<Face>, Embedding)>, String> {
        let Some(detector) = &mut self.detector else {
            crop_to_aligned(picture, &mut self.scaler, &mut self.aligned).map_err(|e| e.to_string())?;
            return Ok(vec![(None, self.identity.embed(&self.aligned).map_err(|e| e.to_string())?)]);
        };
        detector.detect(picture, &mut self.faces).map_err(|e| e.to_string())?;
        let mut found = Vec::with_capacity(self.faces.len());
        for face in &self.faces {
            align(picture, &face.landmarks, &mut self.aligned).map_err(|e| e.to_string())?;
            found.push((Some(*face), self.identity.embed(&self.aligned).map_err(|e| e.to_string())?));
        }
        Ok(found)
    }
}

impl Worker for Teller {
    type Seen = Seen;

    fn look(&mut self, path: &Path, frame: u64, picture: &RgbImage) -> Result<Seen, String> {
        Ok(Seen { path: path.into(), frame, faces: self.faces(picture)? })
    }
}

#[derive(Serialize)]
struct PictureLine<'a> {
    path: std::borrow::Cow<'a, str>,
    frame: u64,
    faces: Vec<FaceEntry<'a>>,
}

#[derive(Serialize)]
struct FaceEntry<'a> {
    #[serde(rename = "box")]
    rect: Option<[f64; 4]>,
    embedding: Numbers<'a>,
}

struct Numbers<'a>(&'a Embedding);

impl Serialize for Numbers<'_> {
    /// Six decimals: a similarity is then right to five.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.values().iter().map(|v| rounded(*v, 1e6)))
    }
}

impl Seen {
    fn json(&self) -> String {
        let px = |v: f32| rounded(v, 100.0);
        let rect = |f: Face| [f.rect.x, f.rect.y, f.rect.width, f.rect.height].map(px);
        let faces = self.faces.iter();
        let faces =
            faces.map(|(face, embedding)| FaceEntry { rect: face.map(rect), embedding: Numbers(embedding) }).collect();
        let line = PictureLine { path: self.path.to_string_lossy(), frame: self.frame, faces };
        // Numbers and a string: nothing in it can fail to serialise.
        let mut text = serde_json::to_string(&line).unwrap_or_default();
        text.push('\n');
        text
    }

    /// How much each face is like the first one of all.
    fn human(&self, first: &mut Option<Embedding>, manifest: &IdentityManifest) -> String {
        let place = place(&self.path, self.frame);
        if self.faces.is_empty() {
            return format!("{place}: no face\n");
        }
        let line = |(face, embedding): &(Option<Face>, Embedding)| {
            let rect = face.map(|f| {
                format!("face at {:.0},{:.0}, {:.0}x{:.0} px: ", f.rect.x, f.rect.y, f.rect.width, f.rect.height)
            });
            let rect = rect.unwrap_or_default();
            match first {
                None => {
                    *first = Some(*embedding);
                    format!("{place}: {rect}the first face\n")
                }
                Some(first) => {
                    let similarity = embedding.similarity(first);
                    format!(
                        "{place}: {rect}similarity {similarity:.2} to the first face: {}\n",
                        verdict(similarity, manifest)
                    )
                }
            }
        };
        self.faces.iter().map(line).collect()
    }
}

fn verdict(similarity: f32, manifest: &IdentityManifest) -> &'static str {
    let thresholds = &manifest.verification;
    if similarity >= thresholds.threshold_far_1e3 {
        "the same person"
    } else if similarity >= thresholds.threshold_far_1e2 {
        "perhaps the same person"
    } else {
        "another person"
    }
}
