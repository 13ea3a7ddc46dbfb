//! Whole pages: they load nothing, escape everything and state the scores correctly.

use std::sync::LazyLock;

use catelier_evaluation::report::{EMBEDDED_BASE_NOTICE, EvaluationPage};
use catelier_evaluation::{Models, Scores};

use crate::story::Story;
use crate::world::{BLUE, ByColour, GREEN, RED, World};

static WINNING: LazyLock<Story> = LazyLock::new(|| Story::new(0.06, 0.42, 0.9));
static DEMO: LazyLock<String> = LazyLock::new(|| WINNING.demo_page().unwrap());
static EVALUATION: LazyLock<String> = LazyLock::new(|| WINNING.evaluation_page().unwrap());

/// Fails if a browser would fetch anything for the page.
fn assert_loads_nothing(html: &str) {
    for forbidden in ["http://", "https://", "<script", "<link", "<iframe", "@import", "url(", "srcset"] {
        assert!(!html.contains(forbidden), "the page contains `{forbidden}`");
    }
    let sources = html.matches(" src=").count();
    assert_eq!(sources, html.matches(" src=\"data:image/png;base64,").count());
    assert!(sources > 0);
}

fn assert_accessible(html: &str) {
    assert!(html.contains("<html lang=\"en\">"));
    assert!(html.contains("name=\"viewport\" content=\"width=device-width, initial-scale=1\""));
    assert_eq!(html.matches("<h1>").count(), 1);
    assert!(html.matches("<img").count() == html.matches(" alt=\"").count());
    assert!(!html.contains(" alt=\"\""));
    let charts = html.matches("class=\"chart\"").count();
    assert_eq!(charts, html.matches("role=\"img\" aria-label=\"").count());
}

#[test]
fn both_pages_load_nothing_and_describe_every_image() {
    for html in [&*DEMO, &*EVALUATION] {
        assert_loads_nothing(html);
        assert_accessible(html);
        assert!(html.contains(EMBEDDED_BASE_NOTICE));
    }
}

#[test]
fn the_demo_tells_who_won() {
    let html = &*DEMO;
    assert!(html.contains("CAT draws what is asked for in the style of Ink and Ochre, and leaves the rest alone"));
    assert!(html.contains("Plain LoRA changed images that never asked for the style"));
    assert!(html.contains("class=\"better\""));
}

#[test]
fn the_demo_admits_when_cat_does_not_win() {
    let html = Story::new(0.3, 0.28, 0.35).demo_page().unwrap();
    assert!(!html.contains("leaves the rest alone"));
    assert!(html.contains("less near to the artist") || html.contains("ahead"));
}

#[test]
fn a_third_adapter_stands_beside_the_two_with_a_look_of_its_own() {
    let html = WINNING.demo_page_of_three().unwrap();
    assert_loads_nothing(&html);
    assert_accessible(&html);
    for (name, tone) in [("CAT", "tone-1"), ("Plain LoRA", "tone-2"), ("DreamBooth", "tone-3")] {
        assert!(html.contains(&format!("<span class=\"name {tone}\">{name}</span>")), "{name}");
        assert!(html.contains(&format!("<th scope=\"col\">{name}</th>")), "{name}");
        assert!(html.contains(&format!("alt=\"{name} with the trigger: ")), "{name}");
    }
    assert!(html.contains("3 adapters learned the style"));
}

#[test]
fn the_demo_shows_every_chart_and_command() {
    let html = &*DEMO;
    for title in ["Denoising loss", "CAT term", "Drift", "Learning rate", "Style against preservation"] {
        assert!(html.contains(title), "{title}");
    }
    assert!(html.contains("catelier train --images my-images"));
}

/// Pairs are sorted by change, the most changed first, and the page says how many are not shown.
#[test]
fn the_most_changed_pair_comes_first_and_the_rest_is_counted() {
    let world = World::new(RED, BLUE, BLUE);
    let evaluation = world.evaluation();
    let scores = evaluation.score(Models { clip: &ByColour::new(), style: None }).unwrap();
    let page = EvaluationPage { shown: 1, ..EvaluationPage::new("ours", &evaluation, &scores) };
    let html = page.html().unwrap();
    assert!(html.contains("With the adapter: a green boat"));
    assert!(!html.contains("With the adapter: a red house"));
    assert!(html.contains("Shown are 1 of 2; all are scored."));
}

#[test]
fn words_of_strangers_stay_words() {
    let world = World::new(RED, GREEN, BLUE);
    let mut evaluation = world.evaluation();
    evaluation.without_trigger[0].prompt = "<script>alert(1)</script> \"red\"".to_owned();
    evaluation.generation.base = "<b>bold</b>".to_owned();
    let scores = evaluation.score(Models { clip: &ByColour::new(), style: None }).unwrap();
    let html = EvaluationPage::new("<title>", &evaluation, &scores).html().unwrap();
    assert!(!html.contains("<script>") && !html.contains("<b>bold") && !html.contains("<title><title>"));
    assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt; &quot;red&quot;"));
}

#[test]
fn scores_of_other_images_do_not_make_a_page() {
    let world = World::new(RED, GREEN, BLUE);
    let evaluation = world.evaluation();
    let scores = evaluation.score(Models { clip: &ByColour::new(), style: None }).unwrap();
    let fewer = Scores { images: vec![], ..scores };
    assert!(EvaluationPage::new("ours", &evaluation, &fewer).html().is_err());
}

#[test]
fn the_same_story_gives_the_same_page() {
    assert_eq!(WINNING.evaluation_page().unwrap(), *EVALUATION);
}
