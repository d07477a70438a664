//! `cargo xtask drawing`: drawings of the book from text. `packaging/book/NAME.txt` says how; `NAME.svg` is what comes
//! out, and a test holds both to each other.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use crate::error::{Attempt, Result};
use crate::{fail, paths, progress};

/// Pixels from one box to the next, of a box, and around all.
const STEP: (u32, u32) = (220, 110);
const BOX: (u32, u32) = (186, 56);
const MARGIN: u32 = 16;

/// A box at its place in the grid.
struct Place {
    column: u32,
    row: u32,
    lines: Vec<String>,
}

impl Place {
    fn corner(&self) -> (u32, u32) {
        (MARGIN + self.column * STEP.0, MARGIN + self.row * STEP.1)
    }

    fn middle(&self) -> (u32, u32) {
        let (x, y) = self.corner();
        (x + BOX.0 / 2, y + BOX.1 / 2)
    }
}

/// Draws each text of the book.
///
/// # Errors
/// When a text is not understood, or a file cannot be written.
pub fn run() -> Result<()> {
    for (text, svg) in files()? {
        let drawn = draw(&read(&text)?)?;
        fs::write(&svg, drawn).doing(|| format!("cannot write {}", svg.display()))?;
        progress::say(format!("drawn: {}", svg.display()));
    }
    Ok(())
}

fn files() -> Result<Vec<(PathBuf, PathBuf)>> {
    let book = paths::root().join("packaging/book");
    let entries = fs::read_dir(&book).doing(|| format!("cannot list {}", book.display()))?;
    let mut texts: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    texts.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    texts.sort();
    Ok(texts.into_iter().map(|text| (text.clone(), text.with_extension("svg"))).collect())
}

fn read(path: &PathBuf) -> Result<String> {
    fs::read_to_string(path).doing(|| format!("cannot read {}", path.display()))
}

/// `box NAME COLUMN ROW TEXT [| TEXT]` and `arrow FROM TO [TEXT]`, a line each.
fn draw(text: &str) -> Result<String> {
    let mut places = BTreeMap::new();
    let mut order = Vec::new();
    let mut arrows = Vec::new();
    for line in text.lines().map(str::trim) {
        let mut words = line.splitn(4, ' ').filter(|word| !word.is_empty());
        match (words.next(), line) {
            (None, _) => {}
            (Some(word), _) if word.starts_with('#') => {}
            (Some("box"), _) => {
                let (name, place) = parse_box(line)?;
                if places.insert(name, place).is_some() {
                    fail!("two boxes have the name {name}");
                }
                order.push(name);
            }
            (Some("arrow"), _) => match (words.next(), words.next()) {
                (Some(from), Some(to)) => arrows.push((from, to, words.next().unwrap_or_default())),
                _ => fail!("an arrow from where to where? {line:?}"),
            },
            _ => fail!("neither a box nor an arrow: {line:?}"),
        }
    }
    let most = |of: fn(&Place) -> u32| places.values().map(of).max().unwrap_or_default();
    let width = 2 * MARGIN + most(|place| place.column) * STEP.0 + BOX.0;
    let height = 2 * MARGIN + most(|place| place.row) * STEP.1 + BOX.1;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\">\n\
         <defs><marker id=\"head\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"8\" markerHeight=\"8\" \
         orient=\"auto\"><path d=\"M0 0L8 4L0 8z\"/></marker></defs>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (from, to, label) in arrows {
        let (Some(start), Some(end)) = (places.get(from), places.get(to)) else {
            fail!("an arrow from {from} to {to}, and not both are boxes");
        };
        draw_arrow(&mut svg, start, end, label);
    }
    for place in order.iter().filter_map(|name| places.get(name)) {
        draw_box(&mut svg, place);
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

fn parse_box(line: &str) -> Result<(&str, Place)> {
    let mut words = line.split_whitespace();
    let _ = words.next();
    let number =
        |word: Option<&str>| word.and_then(|word| word.parse::<u32>().ok()).filter(|n| *n < 50);
    let name = words.next();
    let (Some(name), Some(column), Some(row), Some(first)) =
        (name, number(words.next()), number(words.next()), words.next())
    else {
        fail!("a box needs NAME COLUMN ROW TEXT: {line:?}");
    };
    let text = words.fold(first.to_owned(), |text, word| text + " " + word);
    let lines = text.split('|').map(|line| line.trim().to_owned()).collect();
    Ok((name, Place { column, row, lines }))
}

fn draw_arrow(svg: &mut String, from: &Place, to: &Place, label: &str) {
    let ((x1, y1), (x2, y2)) = (leave(from, to), leave(to, from));
    let _ = writeln!(
        svg,
        "<line x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\" stroke=\"black\" marker-end=\"url(#head)\"/>"
    );
    if !label.is_empty() {
        let (x, y) = (u32::midpoint(x1, x2), u32::midpoint(y1, y2).saturating_sub(4));
        let label = escaped(label);
        let _ = writeln!(
            svg,
            "<text x=\"{x}\" y=\"{y}\" font-size=\"11\" text-anchor=\"middle\">{label}</text>"
        );
    }
}

/// Where a straight arrow to `to` leaves the box: at a side in its own row, else above or below.
fn leave(from: &Place, to: &Place) -> (u32, u32) {
    let (x, y) = from.middle();
    if from.row == to.row {
        if to.column > from.column { (x + BOX.0 / 2, y) } else { (x - BOX.0 / 2, y) }
    } else if to.row > from.row {
        (x, y + BOX.1 / 2)
    } else {
        (x, y - BOX.1 / 2)
    }
}

fn draw_box(svg: &mut String, place: &Place) {
    let ((x, y), (middle, _)) = (place.corner(), place.middle());
    let (width, height) = BOX;
    let _ = writeln!(
        svg,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"4\" fill=\"#eef3f8\" stroke=\"#345\"/>"
    );
    for (line, (baseline, size)) in place.lines.iter().zip([(y + 24, 12), (y + 42, 10)]) {
        let line = escaped(line);
        let _ = writeln!(
            svg,
            "<text x=\"{middle}\" y=\"{baseline}\" font-size=\"{size}\" text-anchor=\"middle\">{line}</text>"
        );
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawings_are_those_of_their_texts() {
        let files = files().unwrap();
        assert!(!files.is_empty());
        for (text, svg) in files {
            let drawn = draw(&read(&text).unwrap()).unwrap();
            let kept = read(&svg).unwrap();
            assert!(drawn == kept, "{}: run cargo xtask drawing", svg.display());
        }
    }

    #[test]
    fn what_a_text_says_is_drawn() {
        let svg =
            draw("# x\n\nbox a 0 0 one a | two\nbox  b  1  0  <b>\narrow a b by ring\n").unwrap();
        assert!(svg.contains(">one a</text>") && svg.contains(">two</text>"), "{svg}");
        assert!(svg.contains(">&lt;b&gt;</text>") && svg.contains(">by ring</text>"), "{svg}");
        assert_eq!(svg.matches("<line ").count(), 1);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in [
            "circle a 0 0 x",
            "box a 0 0",
            "box a x 0 t",
            "box a 0 0 t\nbox a 0 1 t",
            "arrow a b",
            "arrow a",
        ] {
            assert!(draw(text).is_err(), "{text}");
        }
    }
}
