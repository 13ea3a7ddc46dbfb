//! Paths: a small pen over tiny-skia, and the map from an object's own coordinates to the canvas.

use tiny_skia::{Path, PathBuilder, Rect, Transform};

/// A point.
pub(crate) type Point = (f32, f32);

/// Draws one path, step by step.
#[derive(Clone, Default)]
pub(crate) struct Pen(PathBuilder);

impl Pen {
    pub(crate) fn at(x: f32, y: f32) -> Self {
        let mut builder = PathBuilder::new();
        builder.move_to(x, y);
        Self(builder)
    }

    pub(crate) fn line(mut self, x: f32, y: f32) -> Self {
        self.0.line_to(x, y);
        self
    }

    /// A curve that leaves towards (`cx`, `cy`) and ends at (`x`, `y`).
    pub(crate) fn quad(mut self, cx: f32, cy: f32, x: f32, y: f32) -> Self {
        self.0.quad_to(cx, cy, x, y);
        self
    }

    /// A curve that leaves towards `leave`, arrives from `arrive` and ends at `end`.
    pub(crate) fn cubic(mut self, leave: Point, arrive: Point, end: Point) -> Self {
        self.0.cubic_to(leave.0, leave.1, arrive.0, arrive.1, end.0, end.1);
        self
    }

    pub(crate) fn close(mut self) -> Self {
        self.0.close();
        self
    }

    pub(crate) fn circle(x: f32, y: f32, radius: f32) -> Self {
        Self::oval(x, y, radius, radius)
    }

    pub(crate) fn oval(x: f32, y: f32, half_width: f32, half_height: f32) -> Self {
        let mut builder = PathBuilder::new();
        if let Some(bounds) = Rect::from_xywh(x - half_width, y - half_height, 2.0 * half_width, 2.0 * half_height) {
            builder.push_oval(bounds);
        }
        Self(builder)
    }

    pub(crate) fn rectangle(left: f32, top: f32, right: f32, bottom: f32) -> Self {
        Self::polygon(&[(left, top), (right, top), (right, bottom), (left, bottom)])
    }

    pub(crate) fn polygon(corners: &[Point]) -> Self {
        Self::polyline(corners).close()
    }

    pub(crate) fn polyline(points: &[Point]) -> Self {
        let mut builder = PathBuilder::new();
        for (place, &(x, y)) in points.iter().enumerate() {
            if place == 0 {
                builder.move_to(x, y);
            } else {
                builder.line_to(x, y);
            }
        }
        Self(builder)
    }

    /// The path, or `None` where nothing visible was drawn.
    pub(crate) fn finish(self) -> Option<Path> {
        self.0.finish()
    }
}

/// The point at `angle` (radians, clockwise from three o'clock on a canvas whose y grows downwards).
pub(crate) fn polar(centre: Point, radius: f32, angle: f32) -> Point {
    (centre.0 + radius * libm::cosf(angle), centre.1 + radius * libm::sinf(angle))
}

/// Corners that alternate between an outer and an inner radius, first corner up.
pub(crate) fn star_corners(points: usize, outer: f32, inner: f32) -> Vec<Point> {
    (0..2 * points)
        .map(|corner| {
            let radius = if corner % 2 == 0 { outer } else { inner };
            let angle = std::f32::consts::PI * (corner as f32 / points as f32 - 0.5);
            polar((0.0, 0.0), radius, angle)
        })
        .collect()
}

/// The position, size and lean that map an object's own coordinates, -1 to 1, to the canvas.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) centre: Point,
    pub(crate) radius: f32,
    /// Lean in degrees, clockwise.
    pub(crate) lean: f32,
}

impl Frame {
    pub(crate) fn transform(&self) -> Transform {
        Transform::from_scale(self.radius, self.radius)
            .post_concat(Transform::from_rotate(self.lean))
            .post_translate(self.centre.0, self.centre.1)
    }
}
