//! `manifest.toml` of a model bundle: its schema, and the typed views of it that each task needs.
//!
//! Invariant: a typed view that exists is consistent (names known, numbers finite and in range), so that the code that
//! runs the network checks nothing again.

use serde::{Deserialize, Serialize};

use super::{BundleFault, NoVersion, Version};

/// The schema that this program reads.
pub const SCHEMA: i64 = 1;

/// What a bundle is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Task {
    /// Faces and five landmarks.
    #[serde(rename = "face-detection")]
    Detector,
    /// Neutral face and emotion.
    #[serde(rename = "expression")]
    Derl,
    /// Whose face it is, as an embedding.
    #[serde(rename = "identity")]
    Identity,
    /// Make-up put on and taken off.
    #[serde(rename = "makeup")]
    Makeup,
}

impl Task {
    /// All tasks of this program.
    pub const ALL: [Self; 4] = [Self::Detector, Self::Derl, Self::Identity, Self::Makeup];

    /// The name of its bundle, as in the configuration and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Detector => "detector",
            Self::Derl => "derl",
            Self::Identity => "identity",
            Self::Makeup => "makeup",
        }
    }

    /// All names, for people: `a, b and c`.
    pub fn names() -> String {
        let [first @ .., last] = Self::ALL.map(Self::name);
        format!("{} and {last}", first.join(", "))
    }

    /// Whether the program can do without it: its bundle need not be inside the binary.
    pub fn is_optional(self) -> bool {
        matches!(self, Self::Identity | Self::Makeup)
    }

    /// The task whose bundle has this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|task| task.name() == name)
    }

    /// Bundles of this version, major and minor, fit this program: same inputs, outputs and meaning.
    pub fn supported_version(self) -> [u64; 2] {
        match self {
            Self::Detector | Self::Derl | Self::Identity | Self::Makeup => [0, 1],
        }
    }
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// `manifest.toml` as it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: i64,
    /// The bundle's name.
    pub name: String,
    /// `major.minor.patch`; another major has another interface.
    pub version: String,
    /// What it is for.
    pub task: Task,
    /// SPDX expression.
    pub licence: String,
    /// Every file of the bundle but the manifest.
    pub files: Vec<FileEntry>,
    /// The network's inputs.
    pub inputs: Vec<InputEntry>,
    /// The network's outputs.
    pub outputs: Vec<OutputEntry>,
    /// Names of the logits, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// From residue energy to neutrality.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neutrality: Option<NeutralityEntry>,
    /// Logits are divided by it before the softmax.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// How to work with a detector's output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detection: Option<DetectionEntry>,
    /// From which similarity on two faces are one person's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationEntry>,
    /// Faces that stand in for anybody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub avatars: Option<AvatarsEntry>,
    /// How it was quantised; for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantisation: Option<toml::Table>,
    /// Measured accuracy, float and int8; for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accuracy: Vec<toml::Table>,
    /// Where weights and data come from; for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub provenance: Vec<toml::Table>,
}

/// `[[files]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Relative to the bundle's folder, inside it.
    pub path: String,
    /// Lower-case hexadecimal SHA-256.
    pub sha256: String,
    /// Size of the file.
    pub bytes: u64,
}

/// `[[inputs]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputEntry {
    /// Name in the graph.
    pub name: String,
    /// 0 stands for any multiple of 32.
    pub shape: Vec<usize>,
    /// Element type at the network's edge.
    pub dtype: String,
    /// Order of the dimensions.
    #[serde(default)]
    pub layout: String,
    /// Channels and their order.
    #[serde(default)]
    pub colour: String,
    /// What is done to pixel values first.
    #[serde(default)]
    pub normalisation: String,
    /// Added to the standard deviation by the `per-image` normalisation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eps: Option<f32>,
}

/// `[[outputs]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputEntry {
    /// Name in the graph.
    pub name: String,
    /// 0 stands for a dimension that follows from the input.
    pub shape: Vec<usize>,
}

/// `[neutrality]`: 1 at or below `floor`, 0 at or above `ceiling`, linear between.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct NeutralityEntry {
    /// Which of the residue energies.
    pub energy_index: usize,
    /// Energy of a face from which nothing is removed.
    pub floor: f32,
    /// Energy of a face at the height of an expression.
    pub ceiling: f32,
}

/// `[detection]`
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DetectionEntry {
    /// Score from which on a detection is a face.
    pub threshold: f32,
    /// Boxes that overlap by more are one face (intersection over union).
    pub nms_iou: f32,
}

/// `[verification]`: cosine similarities from which on two faces count as one person's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerificationEntry {
    /// One pair of strangers in a hundred is taken for one person.
    pub threshold_far_1e2: f32,
    /// One in a thousand.
    pub threshold_far_1e3: f32,
    /// The pairs that they were measured on; for people.
    pub calibrated_on: String,
}

/// `[avatars]`: synthetic faces, nobody's, that an identity generator gives to whoever is not to be seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AvatarsEntry {
    /// A PNG among the bundle's files: aligned faces of 128x128 pixels side by side.
    pub file: String,
    /// How many.
    pub count: usize,
}

impl Manifest {
    /// Parses `manifest.toml` and checks what holds for every task.
    ///
    /// # Errors
    /// [`BundleFault`]: which key is missing or wrong, and why.
    pub fn parse(text: &str) -> Result<Self, BundleFault> {
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| BundleFault::Syntax(one_line(&e)))?;
        // The schema is looked at first: another one may have any shape.
        match table.get("schema").and_then(toml::Value::as_integer) {
            Some(SCHEMA) => {}
            Some(found) => return Err(BundleFault::Schema { found, supported: SCHEMA }),
            None => return Err(BundleFault::Syntax("`schema` is missing or not a whole number".into())),
        }
        let manifest: Self = table.try_into().map_err(|e: toml::de::Error| BundleFault::Syntax(one_line(&e)))?;
        manifest.check_version()?;
        Ok(manifest)
    }

    /// The version as numbers.
    pub(super) fn parsed_version(&self) -> Result<Version, BundleFault> {
        self.version.parse().map_err(|error: NoVersion| value("version", error.to_string()))
    }

    fn check_version(&self) -> Result<(), BundleFault> {
        let version = self.parsed_version()?;
        let [major, minor] = self.task.supported_version();
        if [version.major, version.minor] == [major, minor] {
            return Ok(());
        }
        let (found, supported) = (self.version.clone(), format!("{major}.{minor}"));
        Err(BundleFault::Version { task: self.task, found, supported })
    }

    fn expect_task(&self, expected: Task) -> Result<(), BundleFault> {
        if self.task == expected { Ok(()) } else { Err(BundleFault::Task { expected, found: self.task }) }
    }

    fn only_input(&self, shape: [usize; 4], colour: &str, normalisation: &str) -> Result<&InputEntry, BundleFault> {
        let [input] = self.inputs.as_slice() else {
            return Err(value("inputs", format!("one input is expected, {} are named", self.inputs.len())));
        };
        Self::check_input(input, shape, colour, normalisation)?;
        Ok(input)
    }

    fn input(
        &self,
        name: &str,
        shape: [usize; 4],
        colour: &str,
        normalisation: &str,
    ) -> Result<&InputEntry, BundleFault> {
        let named = self.inputs.iter().find(|input| input.name == name);
        let input = named.ok_or_else(|| value("inputs", format!("`{name}` is missing")))?;
        Self::check_input(input, shape, colour, normalisation)?;
        Ok(input)
    }

    fn check_input(
        input: &InputEntry,
        shape: [usize; 4],
        colour: &str,
        normalisation: &str,
    ) -> Result<(), BundleFault> {
        check_shape(&input.name, &input.shape, &shape)?;
        check_text(&input.name, "dtype", &input.dtype, "f32")?;
        check_text(&input.name, "layout", &input.layout, "NCHW")?;
        check_text(&input.name, "colour", &input.colour, colour)?;
        check_text(&input.name, "normalisation", &input.normalisation, normalisation)
    }

    fn output(&self, name: &str, shape: &[usize]) -> Result<usize, BundleFault> {
        let index = self
            .outputs
            .iter()
            .position(|o| o.name == name)
            .ok_or_else(|| value("outputs", format!("`{name}` is missing")))?;
        check_shape(name, &self.outputs[index].shape, shape)?;
        Ok(index)
    }
}

/// What the detector needs of its manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct DetectorManifest {
    /// The bundle's own working point; both in (0, 1).
    pub detection: DetectionEntry,
    /// Places of `cls`, `obj`, `bbox`, `kps` among the outputs, for each stride of [`DetectorManifest::STRIDES`].
    pub outputs: [[usize; 4]; 3],
}

impl DetectorManifest {
    /// Pixels between the cells of each output level.
    pub const STRIDES: [usize; 3] = [8, 16, 32];

    /// The view, checked.
    ///
    /// # Errors
    /// [`BundleFault`] where the bundle has another task, or its inputs or outputs are not the detector's.
    pub fn from_manifest(manifest: &Manifest) -> Result<Self, BundleFault> {
        manifest.expect_task(Task::Detector)?;
        manifest.only_input([1, 3, 0, 0], "bgr", "none")?;
        let mut outputs = [[0; 4]; 3];
        for (stride, places) in Self::STRIDES.iter().zip(&mut outputs) {
            for ((kind, values), place) in [("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)].iter().zip(places) {
                *place = manifest.output(&format!("{kind}_{stride}"), &[1, 0, *values])?;
            }
        }
        Ok(Self { detection: checked_detection(manifest.detection)?, outputs })
    }
}

/// What de-expression needs of its manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct DerlManifest {
    /// Added to the standard deviation when a picture is standardised, in grey levels; above zero.
    pub eps: f32,
    /// Place of the neutral face among the outputs.
    pub neutral: usize,
    /// Place of the logits.
    pub logits: usize,
    /// Place of the residue energies.
    pub energy: usize,
    /// The emotion of each logit: eight different names.
    pub labels: [String; 8],
    /// From residue energy to neutrality; `floor < ceiling`.
    pub neutrality: NeutralityEntry,
    /// Above zero.
    pub temperature: f32,
}

impl DerlManifest {
    /// The view, checked.
    ///
    /// # Errors
    /// [`BundleFault`] where the bundle has another task, or its inputs, outputs, labels or numbers do not fit.
    pub fn from_manifest(manifest: &Manifest) -> Result<Self, BundleFault> {
        manifest.expect_task(Task::Derl)?;
        let input = manifest.only_input([1, 1, 64, 64], "luminance", "per-image")?;
        let eps = checked_eps(input)?;
        let energy = manifest.output("residue_energy", &[1, 0])?;
        let energies = manifest.outputs[energy].shape[1];
        Ok(Self {
            eps,
            neutral: manifest.output("neutral", &[1, 1, 64, 64])?,
            logits: manifest.output("logits", &[1, 8])?,
            energy,
            labels: eight_names(&manifest.labels)?,
            neutrality: checked_neutrality(manifest.neutrality, energies)?,
            temperature: checked_temperature(manifest.temperature)?,
        })
    }
}

/// Side of the square of luminance that an identity network sees: the middle of an aligned face.
pub const IDENTITY_SIDE_PX: usize = 112;
/// Numbers in an embedding.
pub const EMBEDDING_LEN: usize = 128;

/// What the identity network needs of its manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct IdentityManifest {
    /// Added to the standard deviation when a picture is standardised, in grey levels; above zero.
    pub eps: f32,
    /// Both within (-1, 1), the stricter one not below the other.
    pub verification: VerificationEntry,
    /// Whether it holds a generator: a network that gives a face another identity.
    pub has_generator: bool,
    /// How many avatars it holds; above zero only where it has a generator.
    pub avatars: usize,
}

impl IdentityManifest {
    /// The encoder's input.
    pub const FACE: &'static str = "face";
    /// The encoder's output.
    pub const EMBEDDING: &'static str = "embedding";
    /// The generator's input with the face of the person.
    pub const PERSON: &'static str = "person";
    /// The generator's input with the face that gives everything else.
    pub const ATTRIBUTES: &'static str = "attributes";
    /// The generator's input with the person's embedding, of length 1.
    pub const WHO: &'static str = "who";
    /// Its shape.
    pub const WHO_SHAPE: [usize; 4] = [1, EMBEDDING_LEN, 1, 1];
    /// The generator's output: what has to be added to the face that gives everything else, in units of 64 grey levels.
    pub const CHANGE: &'static str = "change";
    /// Of both faces and of the output: an aligned face, a plane a colour.
    pub const SHAPE: [usize; 4] = [1, 3, 128, 128];
    /// No bundle holds more avatars.
    pub const MOST_AVATARS: usize = 64;

    /// The view, checked.
    ///
    /// # Errors
    /// [`BundleFault`] where the bundle has another task, or its inputs, outputs or numbers do not fit.
    pub fn from_manifest(manifest: &Manifest) -> Result<Self, BundleFault> {
        manifest.expect_task(Task::Identity)?;
        let side = IDENTITY_SIDE_PX;
        let eps = checked_eps(manifest.input(Self::FACE, [1, 1, side, side], "luminance", "per-image")?)?;
        manifest.output(Self::EMBEDDING, &[1, EMBEDDING_LEN])?;
        let verification = checked_verification(manifest.verification.as_ref())?;
        let has_generator = manifest.outputs.iter().any(|output| output.name == Self::CHANGE);
        if has_generator {
            manifest.output(Self::CHANGE, &Self::SHAPE)?;
            manifest.input(Self::PERSON, Self::SHAPE, "rgb", "(x-128)/64")?;
            manifest.input(Self::ATTRIBUTES, Self::SHAPE, "rgb", "(x-128)/64")?;
            manifest.input(Self::WHO, Self::WHO_SHAPE, "embedding", "unit-length")?;
        }
        let avatars = checked_avatars(manifest.avatars.as_ref(), has_generator)?;
        Ok(Self { eps, verification, has_generator, avatars })
    }
}

/// What the make-up networks need of their manifest: nothing beyond tensors of the right shape, which the view vouches for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MakeupManifest;

impl MakeupManifest {
    /// The input with the face that is to be changed.
    pub const FACE: &'static str = "face";
    /// The input with the face that wears the make-up.
    pub const REFERENCE: &'static str = "reference";
    /// The output with what has to be added to put the make-up on.
    pub const APPLIED: &'static str = "applied";
    /// The output with what has to be added to take make-up off.
    pub const BARE: &'static str = "bare";
    /// Of each input and output: an aligned face, a plane a colour.
    pub const SHAPE: [usize; 4] = [1, 3, 128, 128];

    /// The view, checked.
    ///
    /// # Errors
    /// [`BundleFault`] where the bundle has another task, or its inputs or outputs do not fit.
    pub fn from_manifest(manifest: &Manifest) -> Result<Self, BundleFault> {
        manifest.expect_task(Task::Makeup)?;
        for input in [Self::FACE, Self::REFERENCE] {
            manifest.input(input, Self::SHAPE, "rgb", "none")?;
        }
        for output in [Self::APPLIED, Self::BARE] {
            manifest.output(output, &Self::SHAPE)?;
        }
        Ok(Self)
    }
}

fn checked_eps(input: &InputEntry) -> Result<f32, BundleFault> {
    let eps = input.eps.filter(|e| e.is_finite() && *e > 0.0);
    eps.ok_or_else(|| value("inputs.eps", "must be a number above 0".into()))
}

fn checked_verification(entry: Option<&VerificationEntry>) -> Result<VerificationEntry, BundleFault> {
    let entry = entry.ok_or_else(|| value("verification", "is missing".into()))?;
    let within = |v: f32| v > -1.0 && v < 1.0;
    let (loose, strict) = (entry.threshold_far_1e2, entry.threshold_far_1e3);
    if within(loose) && within(strict) && loose <= strict {
        return Ok(entry.clone());
    }
    let reason = format!("{strict} is not between threshold_far_1e2, {loose}, and 1");
    Err(value("verification.threshold_far_1e3", reason))
}

fn checked_avatars(entry: Option<&AvatarsEntry>, has_generator: bool) -> Result<usize, BundleFault> {
    let Some(entry) = entry else { return Ok(0) };
    let most = IdentityManifest::MOST_AVATARS;
    match entry.count {
        _ if !has_generator => Err(value("avatars", "is there, but no generator that could use them".into())),
        count if (1..=most).contains(&count) => Ok(count),
        count => Err(value("avatars.count", format!("is {count}, must be from 1 to {most}"))),
    }
}

fn eight_names(labels: &[String]) -> Result<[String; 8], BundleFault> {
    let names: [String; 8] = labels
        .to_vec()
        .try_into()
        .map_err(|_| value("labels", format!("8 names are expected, {} are there", labels.len())))?;
    match (0..8).find(|&i| names[..i].contains(&names[i])) {
        Some(twice) => Err(value("labels", format!("`{}` is there twice", names[twice]))),
        None => Ok(names),
    }
}

fn checked_neutrality(entry: Option<NeutralityEntry>, energies: usize) -> Result<NeutralityEntry, BundleFault> {
    let entry = entry.ok_or_else(|| value("neutrality", "is missing".into()))?;
    if entry.energy_index >= energies {
        return Err(value("neutrality.energy_index", format!("is {}, of {energies} energies", entry.energy_index)));
    }
    if !(entry.floor.is_finite() && entry.ceiling.is_finite() && entry.floor < entry.ceiling) {
        return Err(value("neutrality.floor", format!("{} is not below ceiling {}", entry.floor, entry.ceiling)));
    }
    Ok(entry)
}

fn checked_temperature(temperature: Option<f32>) -> Result<f32, BundleFault> {
    let temperature = temperature.unwrap_or(1.0);
    if temperature.is_finite() && temperature > 0.0 {
        return Ok(temperature);
    }
    Err(value("temperature", format!("is {temperature}, must be above 0")))
}

fn checked_detection(entry: Option<DetectionEntry>) -> Result<DetectionEntry, BundleFault> {
    let entry = entry.unwrap_or(DetectionEntry { threshold: 0.6, nms_iou: 0.3 });
    let within = |v: f32| v > 0.0 && v < 1.0;
    if within(entry.threshold) && within(entry.nms_iou) {
        return Ok(entry);
    }
    Err(value("detection", "threshold and nms_iou must lie between 0 and 1".into()))
}

fn check_shape(name: &str, found: &[usize], expected: &[usize]) -> Result<(), BundleFault> {
    let fits = found.len() == expected.len() && found.iter().zip(expected).all(|(f, e)| *e == 0 || f == e);
    if fits {
        return Ok(());
    }
    Err(BundleFault::Shape { tensor: name.into(), expected: expected.to_vec(), found: found.to_vec() })
}

fn check_text(input: &str, key: &str, found: &str, expected: &str) -> Result<(), BundleFault> {
    if found == expected {
        return Ok(());
    }
    Err(value(&format!("inputs.{input}.{key}"), format!("is `{found}`, this program feeds `{expected}`")))
}

fn value(key: &str, reason: String) -> BundleFault {
    BundleFault::Value { key: key.into(), reason }
}

fn one_line(error: &toml::de::Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
