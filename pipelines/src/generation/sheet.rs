//! Comparison sheets: images in labelled rows and columns on a light page.

mod lettering;

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

use crate::error::{Error, Result};
use lettering::Font;

const PAGE: Rgb<u8> = Rgb([250, 250, 248]);
const FRAME: Rgb<u8> = Rgb([222, 222, 218]);
const INK: Rgb<u8> = Rgb([36, 36, 40]);
const FAINT_INK: Rgb<u8> = Rgb([110, 110, 116]);

const MARGIN: u32 = 24;
const GAP: u32 = 12;
const ROW_LABEL_WIDTH: u32 = 190;
/// Most lines of a label; the rest is left out.
const LABEL_LINES: usize = 6;

/// The longest side of a sheet, in pixels; larger sheets are refused.
const LARGEST_SIDE: u32 = 32_768;

/// A comparison sheet before it is drawn.
#[derive(Debug, Clone, Default)]
pub struct Sheet {
    /// The heading; empty for none.
    pub title: String,
    /// A line under the heading, such as the settings; empty for none.
    pub subtitle: String,
    /// A label above each column.
    pub columns: Vec<String>,
    /// The rows from top to bottom.
    pub rows: Vec<SheetRow>,
    /// If the first image is smaller than this number of pixels (256 suits most sheets), it is enlarged to at most that, by
    /// a whole factor. The other images are fitted into the room that it takes, so that all can be compared.
    pub cell: u32,
}

/// One row of a sheet.
#[derive(Debug, Clone, Default)]
pub struct SheetRow {
    /// The label to the left of the row, such as the prompt; long labels are wrapped.
    pub label: String,
    /// One image per column; `None` leaves the cell empty.
    pub images: Vec<Option<RgbImage>>,
}

/// Positions and sizes on the page, in pixels.
struct Layout {
    cell: (u32, u32),
    label_width: u32,
    top: u32,
}

impl Sheet {
    /// Draws the sheet.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] if a row does not have one entry per column, or the sheet would be longer than 32768
    /// pixels on a side.
    pub fn compose(&self) -> Result<RgbImage> {
        self.check_rows()?;
        let layout = self.layout();
        let (width, height) = self.size(&layout)?;
        let mut page = RgbImage::from_pixel(width, height, PAGE);
        self.draw_heading(&mut page);
        for (column, label) in self.columns.iter().enumerate() {
            let lines = Font::Label.wrapped(label, layout.cell.0, LABEL_LINES);
            let top = layout.top - GAP / 2 - Font::Label.height(lines.len());
            Font::Label.draw_centred(&mut page, &lines, (layout.left_of(column), top), layout.cell.0, INK);
        }
        for (row, content) in self.rows.iter().enumerate() {
            content.draw(&mut page, &layout, layout.top_of(row));
        }
        Ok(page)
    }

    fn check_rows(&self) -> Result<()> {
        match self.rows.iter().find(|row| row.images.len() != self.columns.len()) {
            None => Ok(()),
            Some(row) => Err(Error::InvalidSetting {
                setting: "sheet row",
                value: format!("`{}` with {} images", row.label, row.images.len()),
                rule: format!("must have one place for each of {} columns", self.columns.len()),
            }),
        }
    }

    fn layout(&self) -> Layout {
        let first = self.rows.iter().flat_map(|row| row.images.iter().flatten()).next();
        let cell = first.map_or((self.cell.max(1), self.cell.max(1)), |image| enlarged_size(image, self.cell));
        let has_labels = self.rows.iter().any(|row| !row.label.is_empty());
        let column_lines = self.columns.iter().map(|label| Font::Label.wrapped(label, cell.0, LABEL_LINES).len());
        let labels = Font::Label.height(column_lines.max().unwrap_or(0)) + GAP / 2;
        Layout {
            cell,
            label_width: if has_labels { ROW_LABEL_WIDTH + GAP } else { 0 },
            top: MARGIN + self.heading_height() + labels,
        }
    }

    fn heading_height(&self) -> u32 {
        let title = if self.title.is_empty() { 0 } else { Font::Title.height(1) };
        let subtitle = if self.subtitle.is_empty() { 0 } else { Font::Label.height(1) };
        title + subtitle + if title + subtitle > 0 { GAP } else { 0 }
    }

    fn size(&self, layout: &Layout) -> Result<(u32, u32)> {
        let across = |count: usize, cell: u32| {
            u64::from(cell + GAP) * count as u64 + u64::from(2 * MARGIN).saturating_sub(u64::from(GAP))
        };
        let heading = Font::Title.width(&self.title).max(Font::Label.width(&self.subtitle)) + 2 * MARGIN;
        let width = across(self.columns.len(), layout.cell.0) + u64::from(layout.label_width);
        let height = across(self.rows.len(), layout.cell.1) + u64::from(layout.top - MARGIN);
        let (width, height) = (width.max(u64::from(heading)), height);
        match width.max(height) <= u64::from(LARGEST_SIDE) {
            true => Ok((width as u32, height as u32)),
            false => Err(Error::InvalidSetting {
                setting: "sheet size",
                value: format!("{width}x{height}"),
                rule: format!("must be at most {LARGEST_SIDE} pixels on a side; show fewer images"),
            }),
        }
    }

    fn draw_heading(&self, page: &mut RgbImage) {
        let mut top = MARGIN;
        if !self.title.is_empty() {
            Font::Title.draw(page, &self.title, (MARGIN, top), INK);
            top += Font::Title.height(1);
        }
        Font::Label.draw(page, &self.subtitle, (MARGIN, top), FAINT_INK);
    }
}

impl Layout {
    fn left_of(&self, column: usize) -> u32 {
        MARGIN + self.label_width + column as u32 * (self.cell.0 + GAP)
    }

    fn top_of(&self, row: usize) -> u32 {
        self.top + row as u32 * (self.cell.1 + GAP)
    }
}

impl SheetRow {
    fn draw(&self, page: &mut RgbImage, layout: &Layout, top: u32) {
        let room = (layout.cell.1 / Font::Label.height(1)).max(1) as usize;
        let lines = Font::Label.wrapped(&self.label, ROW_LABEL_WIDTH, room.min(2 * LABEL_LINES));
        let middle = layout.cell.1.saturating_sub(Font::Label.height(lines.len())) / 2;
        for (index, line) in lines.iter().enumerate() {
            Font::Label.draw(page, line, (MARGIN, top + middle + Font::Label.height(index)), INK);
        }
        for (column, image) in self.images.iter().enumerate() {
            draw_cell(page, image.as_ref(), (layout.left_of(column), top), layout.cell);
        }
    }
}

/// Draws an image in the middle of its cell, as large as fits, with a thin line around it; an empty cell is tinted.
fn draw_cell(page: &mut RgbImage, image: Option<&RgbImage>, (left, top): (u32, u32), cell: (u32, u32)) {
    let Some(image) = image else {
        imageops::replace(page, &RgbImage::from_pixel(cell.0, cell.1, FRAME), left.into(), top.into());
        return;
    };
    let shown = fitted(image, cell);
    let (width, height) = shown.dimensions();
    let (left, top) = (left + (cell.0 - width) / 2, top + (cell.1 - height) / 2);
    let frame = RgbImage::from_pixel(width + 2, height + 2, FRAME);
    imageops::replace(page, &frame, i64::from(left) - 1, i64::from(top) - 1);
    imageops::replace(page, &shown, left.into(), top.into());
}

/// The image as large as fits into `cell`, its proportions kept. A whole factor shows its pixels as squares.
fn fitted(image: &RgbImage, cell: (u32, u32)) -> RgbImage {
    let (width, height) = image.dimensions();
    let scale = (f64::from(cell.0) / f64::from(width)).min(f64::from(cell.1) / f64::from(height));
    let side = |length: u32, most: u32| ((f64::from(length) * scale).round() as u32).clamp(1, most);
    let filter = if scale >= 1.0 && scale.fract() == 0.0 { FilterType::Nearest } else { FilterType::CatmullRom };
    imageops::resize(image, side(width, cell.0), side(height, cell.1), filter)
}

/// The size of the first image: enlarged by the largest whole factor that fits in `cell`.
fn enlarged_size(image: &RgbImage, cell: u32) -> (u32, u32) {
    let (width, height) = image.dimensions();
    let factor = (cell / width.max(height).max(1)).max(1);
    ((width * factor).max(1), (height * factor).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RED: Rgb<u8> = Rgb([200, 20, 30]);

    fn sheet(side: u32, columns: usize) -> Sheet {
        let image = RgbImage::from_pixel(side, side, RED);
        Sheet {
            title: "Teapots".into(),
            subtitle: String::new(),
            columns: (0..columns).map(|column| format!("column {column}")).collect(),
            rows: vec![SheetRow { label: "a red teapot".into(), images: vec![Some(image); columns] }],
            cell: 256,
        }
    }

    fn count(page: &RgbImage, colour: Rgb<u8>) -> usize {
        page.pixels().filter(|pixel| **pixel == colour).count()
    }

    #[test]
    fn small_images_are_enlarged_by_a_whole_factor() {
        let page = sheet(64, 2).compose().unwrap();
        assert_eq!(count(&page, RED), 2 * 256 * 256);
        let page = sheet(100, 1).compose().unwrap();
        assert_eq!(count(&page, RED), 200 * 200);
    }

    #[test]
    fn large_images_are_shown_pixel_for_pixel() {
        let page = sheet(300, 1).compose().unwrap();
        assert_eq!(count(&page, RED), 300 * 300);
    }

    #[test]
    fn every_image_takes_the_room_of_the_first() {
        const BLUE: Rgb<u8> = Rgb([20, 30, 200]);
        for (width, height, shown) in
            [(512, 512, 256 * 256), (100, 50, 256 * 128), (64, 64, 256 * 256), (9, 900, 3 * 256)]
        {
            let mut sheet = sheet(64, 2);
            sheet.rows[0].images[1] = Some(RgbImage::from_pixel(width, height, BLUE));
            let page = sheet.compose().unwrap();
            assert_eq!((count(&page, RED), count(&page, BLUE)), (256 * 256, shown), "{width}x{height}");
        }
    }

    #[test]
    fn title_and_labels_leave_ink_on_the_page() {
        let written = count(&sheet(64, 2).compose().unwrap(), INK);
        let mut blank = sheet(64, 2);
        (blank.title, blank.rows[0].label) = (String::new(), String::new());
        blank.columns = vec![String::new(); 2];
        let unwritten = count(&blank.compose().unwrap(), INK);
        assert!(written > 100 && unwritten == 0, "{written} and {unwritten} pixels of ink");
    }

    #[test]
    fn a_row_with_a_image_too_few_is_named() {
        let mut sheet = sheet(64, 2);
        sheet.rows[0].images.pop();
        let error = sheet.compose().unwrap_err().to_string();
        assert!(error.contains("a red teapot") && error.contains("2 columns"), "{error}");
    }

    #[test]
    fn a_sheet_beyond_the_largest_side_is_refused() {
        let error = sheet(64, 200).compose().unwrap_err().to_string();
        assert!(error.contains("32768"), "{error}");
    }

    #[test]
    fn an_empty_sheet_is_an_empty_page() {
        let page = Sheet::default().compose().unwrap();
        assert_eq!(count(&page, PAGE), page.len() / 3);
    }
}
