//! `visaged synth ...`: a picture with one of its faces made anew: without its expression, with other make-up, with another identity.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::Failure;
use super::models::{BundleArgs, DetectorArgs, OptionalBundle};
use crate::expression::Reading;
use crate::expression::composite::Change;
use crate::expression::derl::Derl;
use crate::face::AlignedFace;
use crate::face::align::{Similarity, align};
use crate::face::detect::{DetectOptions, Detector, DetectorModel};
use crate::frame::{RgbImage, Scaler};
use crate::models::Task;
use crate::picture::{self, PictureLimits, Synthetic, WriteError};
use crate::synthesis::composite::Composite;
use crate::synthesis::crop_to_aligned;
use crate::synthesis::delta::Delta;
use crate::synthesis::generator::{Avatar, Generator, GeneratorModel};
use crate::synthesis::makeup::{Artist, Look, Makeup, MakeupModel, Region};

/// Make synthetic faces; what is written is marked as synthetic.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  visaged synth neutral smile.jpg -o calm.jpg
  visaged synth neutral --crops crop.png -o calm.png
  visaged synth makeup me.jpg --reference star.jpg -o me-made-up.jpg
  visaged synth makeup me.jpg --reference star.jpg --strength 0.5 --regions lips,eyes -o evening.png
  visaged synth bare star.jpg --face 1 -o star-bare.jpg        the second largest face of the picture
  visaged synth identity --identity her.jpg --attributes him.jpg -o her-as-he-looks.jpg

Without --crops the whole picture is written, with one face changed: the largest, or the one that --face names. Nothing but
the face changes. OUT is marked as synthetic, for machines to read (IPTC digital source type in XMP).")]
pub struct SynthArgs {
    #[command(subcommand)]
    command: SynthCommand,
}

#[derive(Debug, Subcommand)]
enum SynthCommand {
    /// Take the expression out of a face
    Neutral(NeutralArgs),
    /// Put the make-up of another picture on a face
    #[command(after_help = "Examples:
  visaged synth makeup me.jpg --reference star.jpg -o me-made-up.jpg
  visaged synth makeup me.jpg --reference star.jpg --strength 0.5 --regions lips,eyes -o evening.png")]
    Makeup(MakeupArgs),
    /// Take the make-up off a face
    #[command(after_help = "Example:
  visaged synth bare star.jpg -o star-bare.jpg")]
    Bare(BareArgs),
    /// Give a face another identity
    #[command(after_help = "Examples:
  visaged synth identity --identity her.jpg --attributes him.jpg -o her-as-he-looks.jpg
  visaged synth identity --avatar 0 --attributes him.jpg -o nobody.jpg       a synthetic person in his place")]
    Identity(IdentityArgs),
}

/// What all of them take.
#[derive(Debug, Args)]
struct Output {
    /// PNG or JPEG, by extension
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Each picture is one face already cropped; OUT is 128x128
    #[arg(long)]
    crops: bool,
    /// Which face of the picture: 0 is the largest, 1 the next
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "crops")]
    face: usize,
}

#[derive(Debug, Args)]
struct NeutralArgs {
    /// A picture; of a GIF or clip the first frame
    #[arg(value_name = "IN")]
    input: PathBuf,
    #[command(flatten)]
    out: Output,
    #[command(flatten)]
    bundles: BundleArgs,
}

#[derive(Debug, Args)]
struct MakeupArgs {
    /// A picture; of a GIF or clip the first frame
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The picture whose largest face wears the make-up
    #[arg(long, value_name = "REF")]
    reference: PathBuf,
    #[command(flatten)]
    amount: Amount,
    #[command(flatten)]
    out: Output,
    #[command(flatten)]
    bundle: OptionalBundle,
    #[command(flatten)]
    detector: DetectorArgs,
}

/// How much of a change of make-up is made, and where.
#[derive(Debug, Args)]
struct Amount {
    /// How much of it, from 0 to 1
    #[arg(long, value_name = "0..1", default_value = "1", value_parser = strength)]
    strength: f32,
    /// Where: some of lips, eyes, skin
    #[arg(long, value_name = "REGIONS", value_delimiter = ',', default_value = "lips,eyes,skin", value_parser = region)]
    regions: Vec<Region>,
}

impl Amount {
    fn look(&self) -> Look {
        Look::new(&self.regions, self.strength)
    }
}

#[derive(Debug, Args)]
struct BareArgs {
    /// A picture; of a GIF or clip the first frame
    #[arg(value_name = "IN")]
    input: PathBuf,
    #[command(flatten)]
    amount: Amount,
    #[command(flatten)]
    out: Output,
    #[command(flatten)]
    bundle: OptionalBundle,
    #[command(flatten)]
    detector: DetectorArgs,
}

#[derive(Debug, Args)]
struct IdentityArgs {
    #[command(flatten)]
    person: Person,
    /// The picture that gives pose, expression, light and all around the face
    #[arg(long, value_name = "B")]
    attributes: PathBuf,
    #[command(flatten)]
    out: Output,
    #[command(flatten)]
    bundle: OptionalBundle,
    #[command(flatten)]
    detector: DetectorArgs,
}

/// Whose identity is given.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Person {
    /// The picture whose largest face says who it is
    #[arg(long, value_name = "A")]
    identity: Option<PathBuf>,
    /// Nobody: the bundle's synthetic person of this number, from 0
    #[arg(long, value_name = "N")]
    avatar: Option<usize>,
}

fn strength(text: &str) -> Result<f32, String> {
    let strength = text.parse::<f32>().ok().filter(|strength| (0.0..=1.0).contains(strength));
    strength.ok_or_else(|| "takes a number from 0 (nothing) to 1".into())
}

fn region(text: &str) -> Result<Region, String> {
    text.parse().map_err(|error: crate::synthesis::makeup::NoRegion| error.to_string())
}

/// Why there is no face to work on.
#[derive(Debug, thiserror::Error)]
enum FaceError {
    #[error("{}: no face found; where the picture is a face already cropped, say --crops", path.display())]
    NoFace { path: PathBuf },
    #[error("{}: --face {asked}: the picture shows {there} {}, counted from 0, the largest", path.display(), faces(*there))]
    NoSuchFace { path: PathBuf, asked: usize, there: usize },
}

fn faces(count: usize) -> &'static str {
    if count == 1 { "face" } else { "faces" }
}

/// There is no such avatar.
#[derive(Debug, thiserror::Error)]
#[error("--avatar {asked}: {bundle} holds {there}, counted from 0")]
struct NoSuchAvatar {
    asked: usize,
    there: usize,
    bundle: String,
}

/// Runs the subcommand.
///
/// # Errors
/// [`Failure`]: exit 2 for an output that is neither PNG nor JPEG, 1 for all else.
pub fn run(args: &SynthArgs) -> Result<(), Failure> {
    match &args.command {
        SynthCommand::Neutral(args) => neutral(args),
        SynthCommand::Makeup(args) => makeup(args),
        SynthCommand::Bare(args) => bare(args),
        SynthCommand::Identity(args) => identity(args),
    }
}

/// A wrong extension is told before any work is done.
fn check_output(path: &Path) -> Result<(), Failure> {
    let pixel = RgbImage { width_px: 1, height_px: 1, data: vec![0; 3] };
    match picture::encode_synthetic(path, &pixel, Synthetic::Whole) {
        Err(error @ WriteError::Extension { .. }) => Err(Failure::usage(error)),
        Err(error) => Err(Failure::failed(error)),
        Ok(_) => Ok(()),
    }
}

fn open(path: &Path) -> Result<RgbImage, Failure> {
    picture::open(path, PictureLimits::default()).map_err(Failure::failed)
}

fn write(out: &Output, picture: &RgbImage) -> Result<(), Failure> {
    let synthetic = if out.crops { Synthetic::Whole } else { Synthetic::Part };
    picture::write_synthetic(&out.output, picture, synthetic).map_err(Failure::failed)
}

/// The face of a picture, upright; and the similarity that took it there, where the picture is no crop. `detector` is `None` for crops.
fn take_face(
    path: &Path,
    picture: &RgbImage,
    detector: Option<&DetectorModel>,
    which: usize,
) -> Result<(AlignedFace, Option<Similarity>), Failure> {
    let mut aligned = AlignedFace::default();
    let Some(model) = detector else {
        crop_to_aligned(picture, &mut Scaler::new(), &mut aligned).map_err(Failure::failed)?;
        return Ok((aligned, None));
    };
    let mut found = Vec::new();
    Detector::new(model, DetectOptions::still(model)).detect(picture, &mut found).map_err(Failure::failed)?;
    // Largest first.
    let face = found.get(which).ok_or_else(|| {
        let path = path.to_owned();
        Failure::failed(match found.len() {
            0 => FaceError::NoFace { path },
            there => FaceError::NoSuchFace { path, asked: which, there },
        })
    })?;
    let similarity = align(picture, &face.landmarks, &mut aligned).map_err(Failure::failed)?;
    Ok((aligned, Some(similarity)))
}

fn neutral(args: &NeutralArgs) -> Result<(), Failure> {
    check_output(&args.out.output)?;
    let mut picture = open(&args.input)?;
    let mut derl = Derl::new(&args.bundles.derl_model()?).map_err(Failure::failed)?;
    let detector = if args.out.crops { None } else { Some(args.bundles.detector_model()?) };
    let (aligned, similarity) = take_face(&args.input, &picture, detector.as_ref(), args.out.face)?;
    let mut reading = Reading::default();
    match similarity {
        // As `analyze` reads it.
        None => derl.read_crop(&picture, &mut reading),
        Some(_) => derl.read(&aligned, &mut reading),
    }
    .map_err(Failure::failed)?;
    let change = Change::new(&aligned, derl.luminance(), &reading);
    match similarity {
        None => picture = change.over_crop(&aligned),
        Some(similarity) => change.over_picture(&mut picture, &similarity),
    }
    write(&args.out, &picture)
}

fn makeup(args: &MakeupArgs) -> Result<(), Failure> {
    check_output(&args.out.output)?;
    let (picture, reference) = (open(&args.input)?, open(&args.reference)?);
    let model = MakeupModel::new(args.bundle.load(Task::Makeup)?, Makeup::Applied, super::settings()?);
    let mut artist = Artist::new(&model.map_err(Failure::failed)?).map_err(Failure::failed)?;
    let detector = if args.out.crops { None } else { Some(args.detector.model()?) };
    let (wears, _) = take_face(&args.reference, &reference, detector.as_ref(), 0)?;
    artist.set_reference(&wears).map_err(Failure::failed)?;
    let look = args.amount.look();
    paint(&args.input, picture, &args.out, detector.as_ref(), &mut artist, &look)
}

fn bare(args: &BareArgs) -> Result<(), Failure> {
    check_output(&args.out.output)?;
    let picture = open(&args.input)?;
    let model = MakeupModel::new(args.bundle.load(Task::Makeup)?, Makeup::Bare, super::settings()?);
    let mut artist = Artist::new(&model.map_err(Failure::failed)?).map_err(Failure::failed)?;
    let detector = if args.out.crops { None } else { Some(args.detector.model()?) };
    let look = args.amount.look();
    paint(&args.input, picture, &args.out, detector.as_ref(), &mut artist, &look)
}

/// Changes one face of `picture`, and writes it.
fn paint(
    path: &Path,
    mut picture: RgbImage,
    out: &Output,
    detector: Option<&DetectorModel>,
    artist: &mut Artist,
    look: &Look,
) -> Result<(), Failure> {
    let (aligned, similarity) = take_face(path, &picture, detector, out.face)?;
    let mut delta = Delta::default();
    artist.paint(&aligned, &mut delta).map_err(Failure::failed)?;
    lay_over(&mut picture, &delta, look, &aligned, similarity.as_ref());
    write(out, &picture)
}

fn identity(args: &IdentityArgs) -> Result<(), Failure> {
    check_output(&args.out.output)?;
    let person = args.person.identity.as_deref().map(|path| open(path).map(|picture| (path, picture))).transpose()?;
    let mut picture = open(&args.attributes)?;
    let model = GeneratorModel::new(args.bundle.load(Task::Identity)?, super::settings()?).map_err(Failure::failed)?;
    let mut generator = Generator::new(&model).map_err(Failure::failed)?;
    let detector = if args.out.crops { None } else { Some(args.detector.model()?) };
    let person = match person {
        Some((path, picture)) => take_face(path, &picture, detector.as_ref(), 0)?.0,
        None => avatar(&model, args.person.avatar.unwrap_or_default())?.face().clone(),
    };
    generator.set_person(&person).map_err(Failure::failed)?;
    let (aligned, similarity) = take_face(&args.attributes, &picture, detector.as_ref(), args.out.face)?;
    let mut delta = Delta::default();
    generator.exchange(&aligned, &mut delta).map_err(Failure::failed)?;
    lay_over(&mut picture, &delta, &Look::default(), &aligned, similarity.as_ref());
    write(&args.out, &picture)
}

fn avatar(model: &GeneratorModel, asked: usize) -> Result<&Avatar, Failure> {
    let there = model.avatars().len();
    let bundle = format!("identity {} ({})", model.bundle().version(), model.bundle().origin());
    model.avatars().get(asked).ok_or_else(|| Failure::failed(NoSuchAvatar { asked, there, bundle }))
}

/// Changes the face that was taken from `picture`, which is that face where there is no similarity.
fn lay_over(
    picture: &mut RgbImage,
    delta: &Delta,
    look: &Look,
    aligned: &AlignedFace,
    similarity: Option<&Similarity>,
) {
    let mut composite = Composite::new();
    match similarity {
        None => *picture = composite.over_crop(delta, look, aligned),
        Some(similarity) => composite.over_picture(delta, look, picture, similarity),
    }
}
