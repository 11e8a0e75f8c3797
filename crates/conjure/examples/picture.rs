//! The library in six lines: a picture from words, by the built-in model or by the folder or file named as the argument.
//!
//!     cargo run --release -p conjure --example picture -- [MODEL]

use conjure::generate::image::{Control, ImageRequest, Pipeline};

fn main() -> conjure::Result<()> {
    let pipeline = match std::env::args().nth(1) {
        Some(model) => Pipeline::open(model.as_ref(), None)?,
        None => Pipeline::tiny(0)?,
    };
    let request = ImageRequest { prompt: "a red heart".into(), seed: Some(7), ..ImageRequest::default() };
    let generation = pipeline.generate(&request, &mut |_event| Control::Continue)?;
    let output = &generation.outputs[0];
    conjure::image_file::write_png("heart.png".as_ref(), &output.picture, Some(&output.recipe))
}
