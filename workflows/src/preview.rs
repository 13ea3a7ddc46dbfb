//! Images with adapters, beside the base if asked.

use std::fs;
use std::path::PathBuf;

use catelier_adapters::AdapterSet;
use catelier_evaluation::Reference;
use catelier_pipelines::generation::image_file;
use catelier_pipelines::generation::sheet::{Sheet, SheetRow};
use catelier_prompts::{PromptSet, Trigger};
use image::RgbImage;
use serde::Serialize;

use crate::adapter::{AdapterSource, LoadedAdapters};
use crate::base::BaseRequest;
use crate::error::{Context, Error, Result};
use crate::event::{ArtefactKind, Stage};
use crate::generator::{ImageGenerator, Images};
use crate::images;
use crate::output::OutputFolder;
use crate::session::Session;
use crate::settings::SamplingSettings;
use crate::style::Commission;

/// The command that makes folders of previews.
const COMMAND: &str = "preview";

/// How the names of sheets start.
const SHEET: &str = "compare-";

/// Side in pixels to which small images are enlarged on a sheet.
const CELL_PX: u32 = 256;

/// Images as they are asked for.
#[derive(Debug, Clone)]
pub struct PreviewRequest {
    /// The prompts.
    pub prompts: Vec<String>,
    /// More prompts: a file with one a line, or a prompt set by name.
    pub prompt_set: Option<String>,
    /// The adapters, all applied at once.
    pub adapters: Vec<AdapterSource>,
    /// Artists of an index, whose adapters are applied too.
    pub commission: Option<Commission>,
    /// One sheet for each prompt instead of single images: base, adapter without the trigger, adapter with it, a reference.
    pub compare: bool,
    /// The trigger; `None` takes it from the first adapter file that names one.
    pub trigger: Option<String>,
    /// Folder of the images that the adapter was trained on, for the last column of a sheet.
    pub references: Option<PathBuf>,
    /// Images for each prompt, whose seeds count up.
    pub count: usize,
    /// How images are generated.
    pub sampling: SamplingSettings,
    /// The base.
    pub base: BaseRequest,
    /// Where the images go, numbered on from those that are there.
    pub out: PathBuf,
    /// Write beside files in `out` that no preview made; none is replaced.
    pub force: bool,
}

impl Default for PreviewRequest {
    /// No prompts yet; one image each on the embedded base, in the current folder.
    fn default() -> Self {
        Self {
            prompts: Vec::new(),
            prompt_set: None,
            adapters: Vec::new(),
            commission: None,
            compare: false,
            trigger: None,
            references: None,
            count: 1,
            sampling: SamplingSettings::default(),
            base: BaseRequest::default(),
            out: PathBuf::from("."),
            force: false,
        }
    }
}

/// One image or sheet on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Preview {
    /// The PNG file.
    pub file: PathBuf,
    /// Its prompt; of a sheet, without the trigger.
    pub prompt: String,
    /// Its seed; of a sheet, that of the first row.
    pub seed: u64,
}

/// Generates images as `request` says.
///
/// # Errors
/// [`Error::User`] for a request that cannot be carried out, [`Error::Failed`] when the base or the disk fails,
/// [`Error::Cancelled`] between sampler steps.
pub fn preview(request: &PreviewRequest, session: &Session<'_>) -> Result<Vec<Preview>> {
    let prompts = request.all_prompts()?;
    let references = images::read_references(request.references.as_deref())?;
    let sources = request.all_adapters()?;
    let out = OutputFolder::claim(&request.out, COMMAND, request.force, session)?;
    let base = request.base.load(session)?;
    let sampling = request.sampling.clone().resolve(&base.defaults());
    let base = base.with_tiling(&sampling, session)?;
    let adapters = LoadedAdapters::read(&sources, &base.model, session)?;
    let trigger = adapters.trigger(request.trigger.as_deref())?;
    let mut work = Work {
        request,
        out: &out,
        seed: sampling.seed,
        generator: ImageGenerator::new(&base, &sampling).with_triggers(adapters.triggers(trigger.as_ref())),
        adapters: &adapters,
        session,
    };
    let previews = match request.compare {
        true => work.sheets(&prompts, &trigger.ok_or_else(no_trigger)?, &references)?,
        false => work.images(&prompts)?,
    };
    out.finish()?;
    Ok(previews)
}

impl PreviewRequest {
    fn all_adapters(&self) -> Result<Vec<AdapterSource>> {
        let commissioned = self.commission.as_ref().map(Commission::adapters).transpose()?;
        Ok(self.adapters.iter().cloned().chain(commissioned.unwrap_or_default()).collect())
    }

    fn all_prompts(&self) -> Result<Vec<String>> {
        if self.count == 0 {
            return Err(Error::user("`--count` is 0", "ask for at least one image for each prompt"));
        }
        let mut prompts = self.prompts.clone();
        if let Some(name) = &self.prompt_set {
            let set = PromptSet::named_or_file(name).user_error("cannot read the prompts")?;
            let rendered = set.render(Default::default()).user_error("cannot use the prompts")?;
            prompts.extend(rendered.prompts.into_iter().map(|prompt| prompt.text));
        }
        Ok(prompts)
    }
}

fn no_trigger() -> Error {
    Error::user(
        "`--compare` needs an adapter with a trigger",
        "give `--adapter FILE` and, if the file names none, `--trigger WORD`",
    )
}

/// A request with everything loaded.
struct Work<'a, 's> {
    request: &'a PreviewRequest,
    out: &'a OutputFolder,
    seed: u64,
    generator: ImageGenerator<'a>,
    adapters: &'a LoadedAdapters,
    session: &'a Session<'s>,
}

impl Work<'_, '_> {
    fn images(&mut self, prompts: &[String]) -> Result<Vec<Preview>> {
        let (prompts, seeds) = self.with_seeds(prompts);
        let Self { out, adapters, session, .. } = *self;
        let (names, count) = (adapters.names_and_hashes(), self.request.count);
        let told = |(prompt, seed): (&String, &u64)| self.generator.parameters(prompt, *seed, &names);
        let parameters: Vec<_> = prompts.iter().zip(&seeds).map(told).collect();
        let first = self.begin("")?;
        let mut previews = Vec::new();
        let mut save = |image: RgbImage| -> Result<()> {
            let parameters = &parameters[previews.len()];
            let (seed, number) = (parameters.seed, first + previews.len() / count);
            let file = out.path().join(format!("{number:03}-seed{seed}.png"));
            image_file::write_png(&file, &image, Some(parameters)).failed("cannot save an image")?;
            session.written(ArtefactKind::Image, &file);
            previews.push(Preview { file, prompt: parameters.prompt.clone(), seed });
            Ok(())
        };
        let images = Images { prompts: &prompts, seeds: &seeds };
        let generated = self.generator.generate_each(Stage::Generate, images, &adapters.set, session, &mut save);
        if matches!(generated, Err(Error::Cancelled)) {
            let (done, out) = (previews.len(), out.path().display());
            session.note(format!(
                "{done} of {} images are in `{out}`; the same command begins anew beside them",
                prompts.len()
            ));
        }
        generated.map(|()| previews)
    }

    /// One sheet for each prompt, a row for each seed.
    fn sheets(&mut self, prompts: &[String], trigger: &Trigger, references: &[Reference]) -> Result<Vec<Preview>> {
        let without: Vec<String> = prompts.iter().map(|prompt| trigger.remove(prompt)).collect();
        let with: Vec<String> = without.iter().map(|prompt| trigger.insert(prompt).caption).collect();
        let ((without, seeds), (with, _)) = (self.with_seeds(&without), self.with_seeds(&with));
        let adapted = self.adapters.set.clone();
        let columns = [
            self.generate(Stage::GenerateBase, &without, &seeds, &AdapterSet::base())?,
            self.generate(Stage::GenerateWithoutTrigger, &without, &seeds, &adapted)?,
            self.generate(Stage::GenerateWithTrigger, &with, &seeds, &adapted)?,
        ];
        let names = self.adapters.names_and_hashes();
        let first_number = self.begin(SHEET)?;
        let mut previews = Vec::new();
        for (index, first) in (0..seeds.len()).step_by(self.request.count).enumerate() {
            let rows = (first..first + self.request.count).map(|row| SheetRow {
                label: format!("seed {}", seeds[row]),
                images: sheet_row(&columns, row, references),
            });
            let sheet = Sheet {
                title: without[first].clone(),
                subtitle: self.generator.caption(seeds[first]),
                columns: headings(trigger, !references.is_empty()),
                rows: rows.collect(),
                cell: CELL_PX,
            };
            let file = self.out.path().join(format!("{SHEET}{:03}.png", first_number + index));
            let parameters = self.generator.parameters(&with[first], seeds[first], &names);
            let image = sheet.compose().failed("cannot compose the sheet")?;
            image_file::write_png(&file, &image, Some(&parameters)).failed("cannot save a sheet")?;
            self.session.written(ArtefactKind::Sheet, &file);
            previews.push(Preview { file, prompt: without[first].clone(), seed: seeds[first] });
        }
        Ok(previews)
    }

    /// Marks the folder, and gives the number that follows those of all files there whose names start with `start`.
    fn begin(&self, start: &str) -> Result<usize> {
        self.out.begin()?;
        let folder = self.out.path();
        let entries = fs::read_dir(folder).failed(format!("cannot read `{}`", folder.display()))?;
        let numbers = entries.filter_map(|entry| number_of(&entry.ok()?.file_name().to_string_lossy(), start));
        Ok(numbers.max().map_or(0, |last| last + 1))
    }

    fn generate(
        &mut self,
        stage: Stage,
        prompts: &[String],
        seeds: &[u64],
        adapters: &AdapterSet,
    ) -> Result<Vec<RgbImage>> {
        self.generator.generate(stage, Images { prompts, seeds }, adapters, self.session)
    }

    /// Every prompt as often as asked, with seeds that count up.
    fn with_seeds(&self, prompts: &[String]) -> (Vec<String>, Vec<u64>) {
        let (count, seed) = (self.request.count as u64, self.seed);
        prompts.iter().flat_map(|prompt| (0..count).map(move |add| (prompt.clone(), seed + add))).unzip()
    }
}

/// The number after `start` in a file's name.
fn number_of(name: &str, start: &str) -> Option<usize> {
    let rest = name.strip_prefix(start)?;
    let end = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok().filter(|number| *number < usize::MAX / 2)
}

fn sheet_row(columns: &[Vec<RgbImage>], row: usize, references: &[Reference]) -> Vec<Option<RgbImage>> {
    let generated = columns.iter().map(|column| column.get(row).cloned());
    let reference = (!references.is_empty())
        .then(|| references.get(row % references.len()).map(|reference| reference.image.clone()));
    generated.chain(reference).collect()
}

fn headings(trigger: &Trigger, with_reference: bool) -> Vec<String> {
    let mut headings =
        vec!["base".to_string(), "adapter, no trigger".to_string(), format!("adapter, \"{}\"", trigger.word())];
    headings.extend(with_reference.then(|| "training image".to_string()));
    headings
}

#[cfg(test)]
mod tests {
    use super::number_of;

    #[test]
    fn numbers_of_images_and_sheets_are_counted_apart() {
        let numbers = |name| (number_of(name, ""), number_of(name, super::SHEET));
        assert_eq!(numbers("007-seed42.png"), (Some(7), None));
        assert_eq!(numbers("1000-mine.png"), (Some(1000), None));
        assert_eq!(numbers("compare-012.png"), (None, Some(12)));
        assert_eq!(numbers("notes.txt"), (None, None));
        assert_eq!(numbers("99999999999999999999.png"), (None, None));
    }
}
