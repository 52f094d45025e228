//! `visaged synth neutral IN -o OUT`: a picture with the expression taken out of its largest face.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::Failure;
use super::models::BundleArgs;
use crate::expression::Reading;
use crate::expression::composite::Change;
use crate::expression::derl::Derl;
use crate::face::align::align;
use crate::face::detect::{DetectOptions, Detector};
use crate::face::{ALIGNED_SIDE_PX, AlignedFace};
use crate::frame::{RgbImage, Scaler};
use crate::picture::{self, PictureLimits, Synthetic, WriteError};

/// Make synthetic faces; what is written is marked as synthetic.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  visaged synth neutral smile.jpg -o calm.jpg
  visaged synth neutral --crops crop.png -o calm.png")]
pub struct SynthArgs {
    #[command(subcommand)]
    command: SynthCommand,
}

#[derive(Debug, Subcommand)]
enum SynthCommand {
    /// Take the expression out of a face
    Neutral(NeutralArgs),
}

#[derive(Debug, Args)]
struct NeutralArgs {
    /// A picture; of a GIF or clip the first frame
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// PNG or JPEG, by extension
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// IN is one face already cropped; OUT is 128x128
    #[arg(long)]
    crops: bool,
    #[command(flatten)]
    bundles: BundleArgs,
}

#[derive(Debug, thiserror::Error)]
#[error("{}: no face found; where the picture is a face already cropped, say --crops", path.display())]
struct NoFace {
    path: PathBuf,
}

/// Runs the subcommand.
///
/// # Errors
/// [`Failure`]: exit 2 for an output that is neither PNG nor JPEG, 1 for all else.
pub fn run(args: &SynthArgs) -> Result<(), Failure> {
    let SynthCommand::Neutral(args) = &args.command;
    check_output(&args.output)?;
    let picture = picture::open(&args.input, PictureLimits::default()).map_err(Failure::failed)?;
    let mut derl = Derl::new(&args.bundles.derl_model()?).map_err(Failure::failed)?;
    let (out, synthetic) = if args.crops {
        (neutral_crop(&mut derl, &picture)?, Synthetic::Whole)
    } else {
        (neutral_picture(&mut derl, args, picture)?, Synthetic::Part)
    };
    picture::write_synthetic(&args.output, &out, synthetic).map_err(Failure::failed)
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

fn neutral_crop(derl: &mut Derl, picture: &RgbImage) -> Result<RgbImage, Failure> {
    let mut reading = Reading::default();
    derl.read_crop(picture, &mut reading).map_err(Failure::failed)?;
    let mut crop = RgbImage::default();
    crop.resize(ALIGNED_SIDE_PX as u32, ALIGNED_SIDE_PX as u32);
    Scaler::new().scale(picture, &mut crop);
    let face = AlignedFace { rgb: crop.data, quality: 1.0 };
    Ok(Change::new(&face, derl.luminance(), &reading).over_crop(&face))
}

fn neutral_picture(derl: &mut Derl, args: &NeutralArgs, mut picture: RgbImage) -> Result<RgbImage, Failure> {
    let model = args.bundles.detector_model()?;
    let mut faces = Vec::new();
    Detector::new(&model, DetectOptions::still(&model)).detect(&picture, &mut faces).map_err(Failure::failed)?;
    // Largest first.
    let face = faces.first().ok_or_else(|| Failure::failed(NoFace { path: args.input.clone() }))?;
    let (mut aligned, mut reading) = (AlignedFace::default(), Reading::default());
    let similarity = align(&picture, &face.landmarks, &mut aligned).map_err(Failure::failed)?;
    derl.read(&aligned, &mut reading).map_err(Failure::failed)?;
    Change::new(&aligned, derl.luminance(), &reading).over_picture(&mut picture, &similarity);
    Ok(picture)
}
