//! `conjure evaluate reconstruction`.

use crate::command::Desk;
use serde_json::Value;

/// Some discs on white, as an emoji is drawn.
fn pictures(desk: &Desk) {
    let folder = desk.path("pictures");
    std::fs::create_dir_all(&folder).unwrap();
    for n in 0..3u8 {
        let inside = |x: u32, y: u32| x.abs_diff(32).pow(2) + y.abs_diff(32).pow(2) < 24 * 24;
        let colour = |x, y| if inside(x, y) { image::Rgb([220, 40 + 80 * n, 30]) } else { image::Rgb([255; 3]) };
        let picture = image::RgbImage::from_fn(64, 64, colour);
        picture.save(folder.join(format!("{n}.png"))).unwrap();
        std::fs::write(folder.join(format!("{n}.txt")), "a disc").unwrap();
    }
}

#[test]
fn pictures_come_back_through_what_was_trained_and_not_through_what_was_not() {
    let desk = Desk::new();
    pictures(&desk);
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/");
    let measured = |model: &str| -> Value {
        let args = ["evaluate", "reconstruction", model, "--data", "pictures", "--size", "64", "--json"];
        serde_json::from_str(&desk.conjure(&args).succeeded().stdout).unwrap()
    };
    let psnr = |value: &Value| value["psnr"].as_f64().unwrap();
    let larger = measured(&format!("{shipped}super_resolution"));
    assert_eq!((&larger["pictures"], &larger["held_out"]), (&3.into(), &false.into()));
    assert!(psnr(&larger["model"]) > psnr(&larger["bicubic"]) && psnr(&larger["bicubic"]) > 20.0, "{larger}");
    assert!(larger["model"]["ssim"].as_f64().unwrap() > 0.95, "{larger}");
    let trained = measured(&format!("{shipped}emoji"));
    assert!(psnr(&trained["model"]) > 20.0 && trained["bicubic"].is_null(), "{trained}");
    assert_eq!(trained, measured(&format!("{shipped}emoji/vae")));
    desk.conjure(&["models", "tiny", "--out", "tiny"]).succeeded();
    let untrained = measured("tiny");
    assert!(psnr(&untrained["model"]) < 12.0, "{untrained}");
    let args = ["evaluate", "reconstruction", "tiny", "--data", "pictures", "--size", "64"];
    let told = desk.conjure(&args).succeeded();
    assert!(told.stdout.starts_with("model    PSNR ") && told.stderr.contains("none are held out"), "{}", told.stdout);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let desk = Desk::new();
    pictures(&desk);
    desk.conjure(&["models", "tiny", "--out", "tiny"]).succeeded();
    let refused = |more: &[&str], words: &[&str]| {
        desk.conjure(&[&["evaluate", "reconstruction"], more].concat()).failed(2, words);
    };
    refused(
        &["tiny", "--data", "pictures", "--size", "63"],
        &["size 63 is not a multiple of", "help: for example --size"],
    );
    refused(&["tiny", "--data", "pictures", "--size", "8"], &["size 8 is outside 11 to 4096", "help:"]);
    refused(&["pictures", "--data", "pictures"], &["config.json: not found", "help:"]);
    refused(&["tiny", "--data", "nowhere.zip"], &["nowhere.zip"]);
}
