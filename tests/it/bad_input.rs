//! Mistakes of users: the messages, and the exit code 2.

use std::fs;

use crate::catelier::{Ran, Studio};
use crate::train::studio;

fn refused(ran: &Ran) -> String {
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert_eq!(ran.stdout, "");
    ran.message()
}

/// The message of training on the folder `art` with these files.
fn training_on(files: &[(&str, &[u8])]) -> String {
    let studio = Studio::new();
    fs::create_dir(studio.path("art")).unwrap();
    for (name, bytes) in files {
        studio.write(&format!("art/{name}"), bytes);
    }
    refused(&studio.run("train --images art --trigger shs --out run"))
}

#[test]
fn a_missing_trigger() {
    let studio = studio();
    let message = refused(&studio.run("train --images art --out run"));
    assert_eq!(message, "error: `trigger` is not set\nhint: give `--trigger`, or `trigger = …` in the run file");
}

#[test]
fn a_missing_folder() {
    let studio = Studio::new();
    let message = refused(&studio.run("train --images nowhere --trigger shs --out run"));
    assert_eq!(message, "error: cannot train on these images\ncause: no such folder: `nowhere`");
}

#[test]
fn an_empty_folder() {
    assert_eq!(
        training_on(&[]),
        "error: cannot train on these images\ncause: no images in `art`: files ending in jpg, jpeg, png, webp, bmp, gif, tif, tiff are read; the folder is empty\nhint: put the images directly into this folder"
    );
}

#[test]
fn an_image_without_a_caption() {
    let studio = studio();
    fs::remove_file(studio.path("art/0002.txt")).unwrap();
    assert_eq!(
        refused(&studio.run("train --images art --trigger shs --out run")),
        "error: cannot train on these images\ncause: 1 of 4 images in `art` cannot be used: `0002.png` has no caption\nhint: write a .txt file of the same name beside each, or give one caption for all with `--caption`"
    );
}

#[test]
fn images_that_cannot_be_read_are_all_named() {
    let studio = studio();
    let whole = fs::read(studio.path("art/0001.png")).unwrap();
    studio.write("art/0001.png", &whole[..whole.len() / 2]);
    studio.write("art/0002.png", b"");
    studio.write("art/0003.png", b"these are no pixels");
    studio.write("art/0004.png", large_png(30_000, 30_000));
    assert_eq!(
        refused(&studio.run("train --images art --trigger shs --out run")),
        "error: cannot train on these images\ncause: 4 of 4 images in `art` cannot be used: `0001.png` is cut off before its end; `0002.png` is empty (0 bytes); `0003.png` is not an image; `0004.png` is 30000x30000 pixels, at most 20000 on a side are read\nhint: open these files in an image program and save them again, or move them out of the folder"
    );
}

/// A PNG whose header claims a large size, with next to no data.
fn large_png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().unwrap();
    writer.write_chunk(png::chunk::IDAT, &[0x78, 0x9c]).unwrap();
    drop(writer);
    bytes
}

#[test]
fn a_run_file_with_an_unknown_key() {
    let studio = studio();
    studio.write("run.toml", "images = \"art\"\ntrigger = \"shs\"\nlearing_rate = 1.0\n");
    assert_eq!(
        refused(&studio.run("train --config run.toml --out run")),
        "error: run file `run.toml` cannot be used\ncause: line 3: unknown key `learing_rate`\nhint: the key may be `learning_rate`"
    );
}

#[test]
fn a_run_file_of_a_later_version_or_with_a_wrong_value() {
    let studio = studio();
    let answer = |text: &str| {
        studio.write("run.toml", text);
        refused(&studio.run("train --config run.toml --out run"))
    };
    let later = answer("version = 9\nimages = \"art\"\n");
    assert!(later.contains("version 9") && later.contains("hint: use the program that saved it"), "{later}");
    let wrong = answer("images = \"art\"\nloss = \"best\"\n");
    assert!(wrong.contains("line 2, `loss = \"best\"`: unknown variant `best`, expected one of `cat`"), "{wrong}");
}

#[test]
fn settings_out_of_range() {
    let studio = studio();
    let message = refused(&studio.run("train --images art --trigger shs --learning-rate 0 --out run"));
    assert_eq!(
        message,
        "error: the settings cannot be used\ncause: setting `learning_rate` is 0, it must be a positive number"
    );
    let ran = studio.run("train --images art --trigger shs --loss best --out run");
    assert!(ran.stderr.contains("[possible values: cat, lora, dreambooth]"), "{}", ran.stderr);
    assert_eq!(refused(&ran), "error: invalid value 'best' for '--loss <NAME>'");
}

#[test]
fn a_folder_that_already_holds_a_run() {
    let studio = studio();
    studio.write("run/adapter.safetensors", b"precious");
    let message = refused(&studio.run("train --images art --trigger shs --out run"));
    assert_eq!(
        message,
        "error: `run` already holds a run\nhint: go on with it by `--resume`, or choose another `--out`"
    );
    assert_eq!(fs::read(studio.path("run/adapter.safetensors")).unwrap(), b"precious");
}

#[test]
fn files_that_catelier_did_not_make_are_refused_by_name_and_kept() {
    let studio = Studio::new();
    for (own, line) in [
        ("demo/pictures/sunset.png", "demo --steps 1 --prompts 1 --out demo"),
        ("demo2/wash/cat/state/diary.txt", "demo --steps 1 --prompts 1 --out demo2"),
        ("town/goldleaf/pictures/sunset.png", "federate simulate --local-steps 1 --out town"),
        ("run/README.md", "train --images art --trigger shs --out run"),
    ] {
        studio.write(own, b"precious");
        let message = refused(&studio.run(line));
        assert!(message.contains(own) && message.contains("hint: choose another `--out`"), "{line}: {message}");
        assert_eq!(fs::read(studio.path(own)).unwrap(), b"precious", "{line}");
    }
}

#[test]
fn a_base_that_does_not_exist_or_is_a_pickle() {
    let studio = studio();
    let message = refused(&studio.run("train --images art --trigger shs --base ./nowhere --out run"));
    assert_eq!(
        message,
        "error: there is no base `./nowhere`\nhint: use `embedded`, a diffusers folder, or a hub id such as `stable-diffusion-v1-5/stable-diffusion-v1-5`"
    );
    studio.write("model.ckpt", b"PK");
    let message = refused(&studio.run("train --images art --trigger shs --base model.ckpt --out run"));
    assert_eq!(
        message,
        "error: `model.ckpt` is a pickle checkpoint, which can run code when it is opened\nhint: convert it with diffusers' `convert_original_stable_diffusion_to_diffusers.py`"
    );
}

#[test]
fn a_refused_training_marks_nothing_and_later_runs_replace_nothing() {
    let studio = studio();
    fs::create_dir(studio.path("mine")).unwrap();
    refused(&studio.run("train --images art --trigger shs --rank 0 --out mine"));
    assert!(!studio.path("mine/.catelier.json").exists());
    studio.write("mine/README.md", b"precious");
    let message = refused(&studio.run("train --images art --trigger shs --steps 1 --out mine"));
    assert!(message.starts_with("error: `mine/README.md` is in the way"), "{message}");
    assert_eq!(fs::read(studio.path("mine/README.md")).unwrap(), b"precious");
}

#[test]
fn settings_of_the_text_encoder_that_cannot_work_are_refused_before_training() {
    let studio = studio();
    let message = refused(&studio.run("train --images art --trigger shs --train-text-encoder --format peft --out run"));
    assert!(message.starts_with("error: a PEFT file holds the adapter of one model"), "{message}");
    let message = refused(&studio.run("train --images art --trigger shs --text-encoder-learning-rate 1 --out run"));
    assert!(message.contains("setting `text_encoder_learning_rate` is 1, it needs `train_text_encoder`"), "{message}");
}

#[test]
fn sampling_settings_out_of_range_are_the_users_to_change() {
    let studio = Studio::new();
    for wrong in ["--steps 0", "--size 7x7"] {
        let message = refused(&studio.run(&format!("preview --prompt cat {wrong} --out out")));
        assert!(message.starts_with("error: cannot generate images\ncause: setting `"), "{message}");
    }
}
