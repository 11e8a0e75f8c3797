//! `conjure evaluate reconstruction`.

use crate::args::ReconstructionArgs;
use crate::progress::Progress;
use crate::{interrupt, report};
use conjure::data::Split;
use conjure::evaluate::{Fidelity, Restorer};
use conjure::image_file::Picture;
use conjure::train::pictures::Pictures;
use conjure::train::recipe::Data;
use conjure::{Error, Result};
use serde_json::json;
use std::process::ExitCode;

/// Pictures that are computed at once.
const CHUNK: usize = 8;
/// Sides of pictures: SSIM needs its window, and no picture of a data set is larger.
const SIZES: std::ops::RangeInclusive<usize> = 11..=4096;
/// Side of the pictures where neither the model nor the user says one.
const USUAL_SIZE: usize = 128;

/// Prints how like their originals held-out pictures come back.
pub fn run(args: &ReconstructionArgs) -> Result<ExitCode> {
    interrupt::end_at_once();
    if let Some(threads) = args.machine.threads {
        conjure::set_threads(threads)?;
    }
    let device = args.device.device.open()?;
    let (restorer, own) = Restorer::open(&args.model, &device)?;
    let size = args.size.or(own).unwrap_or(USUAL_SIZE);
    if !SIZES.contains(&size) {
        return Err(Error::request(format!("size {size} is outside {} to {}", SIZES.start(), SIZES.end()))
            .with_help("64 or 128 are usual"));
    }
    if !size.is_multiple_of(restorer.grid()) {
        let grid = restorer.grid();
        return Err(Error::request(format!("size {size} is not a multiple of {grid}, as the model needs"))
            .with_help(format!("for example --size {}", size.div_ceil(grid) * grid)));
    }
    let is_folder = args.data.is_dir();
    let data = Data {
        file: (!is_folder).then(|| args.data.clone()),
        folder: is_folder.then(|| args.data.clone()),
        size,
        styles: args.styles.clone(),
        exclude_groups: args.exclude_groups.clone(),
        ..Data::default()
    };
    let pictures = Pictures::open(&data, 0)?;
    pictures.warnings().iter().for_each(|warning| report::note(&format!("note: {warning}")));
    let held_out = pictures.split(Split::HeldOutConcept);
    let (indices, which) = match held_out {
        [] => (pictures.split(Split::Train), "pictures, of which none are held out"),
        _ => (held_out, "pictures of held-out concepts"),
    };
    let mut progress = Progress::new();
    let (mut originals, mut restored, mut interpolated) = (Vec::new(), Vec::new(), Vec::<Picture>::new());
    for chunk in indices.chunks(CHUNK) {
        progress.step(originals.len(), indices.len());
        let x = pictures.tensor(chunk, &device)?;
        restored.extend(restorer.restored(&x)?);
        interpolated.extend(restorer.interpolated(&x)?.into_iter().flatten());
        for &i in chunk {
            originals.push(pictures.picture(i)?);
        }
    }
    progress.finish();
    if originals.is_empty() {
        return Err(Error::file(&args.data, "holds no picture").with_help("look at --styles and --exclude-groups"));
    }
    let made = Fidelity::of(&originals, &restored)?;
    let plain = if interpolated.is_empty() { None } else { Some(Fidelity::of(&originals, &interpolated)?) };
    if args.machine.json {
        let value = json!({ "pictures": originals.len(), "size": size, "held_out": !held_out.is_empty(), "model": made, "bicubic": plain });
        report::result(&value.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let line = |name: &str, Fidelity { psnr, ssim }: Fidelity| format!("{name:<8} PSNR {psnr:.2} dB  SSIM {ssim:.4}");
    let lines = [Some(line("model", made)), plain.map(|plain| line("bicubic", plain))];
    report::result(&lines.into_iter().flatten().collect::<Vec<_>>().join("\n"))?;
    report::note(&format!("{} {which}, {size}x{size} pixels", originals.len()));
    Ok(ExitCode::SUCCESS)
}
