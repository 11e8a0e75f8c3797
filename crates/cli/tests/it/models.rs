//! `conjure models ...`.

use crate::command::Desk;

#[test]
fn the_tiny_model_is_written_whole_and_makes_the_same_picture_from_disk() {
    let desk = Desk::new();
    desk.conjure(&["models", "tiny", "--out", "tiny"]).succeeded();
    desk.conjure(&["image", "a heart", "--seed", "4", "--steps", "2", "-o", "memory.png"]).succeeded();
    desk.conjure(&["image", "a heart", "--seed", "4", "--steps", "2", "-o", "disk.png", "-m", "tiny"]).succeeded();
    let pixels = |name: &str| image::open(desk.path(name)).unwrap().into_rgb8();
    assert!(pixels("memory.png") == pixels("disk.png"));
    desk.conjure(&["models", "tiny", "--out", "tiny"]).failed(2, &["tiny", "help:"]);
}
