//! Rows that a ratio or a number is compared with its limit in.

/// What a value must keep to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// It may be this or less.
    AtMost(f64),
    /// It must be this or more.
    AtLeast(f64),
    /// It is there to be known.
    None,
}

impl Limit {
    fn keeps(self, value: f64) -> bool {
        // Whatever is no number keeps nothing.
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
            Self::None => true,
        }
    }
}

/// A value with its limit.
pub struct Row {
    /// What was measured.
    pub what: String,
    /// How much.
    pub value: f64,
    /// What it must keep to.
    pub limit: Limit,
    /// What it was made from, with the unit.
    pub note: String,
}

/// Rows in order.
#[derive(Default)]
pub struct Table(Vec<Row>);

impl Table {
    /// Adds a row at the end.
    pub fn add(&mut self, row: Row) {
        self.0.push(row);
    }

    /// Prints the rows, and answers whether all keep their limits.
    pub fn print(&self) -> bool {
        println!("\n{:<42} {:>9} {:>9}", "", "measured", "limit");
        for row in &self.0 {
            let limit = match row.limit {
                Limit::AtMost(limit) => format!("<= {}", number(limit)),
                Limit::AtLeast(limit) => format!(">= {}", number(limit)),
                Limit::None => "-".to_owned(),
            };
            let verdict = if row.limit.keeps(row.value) { "" } else { "  MISSED" };
            println!("{:<42} {:>9} {limit:>9}  {}{verdict}", row.what, number(row.value), row.note);
        }
        self.is_kept()
    }

    fn is_kept(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|row| row.limit.keeps(row.value))
    }
}

/// A ratio has three places, a number of hundreds and more none.
fn number(value: f64) -> String {
    if value.abs() < 100.0 { format!("{value:.3}") } else { format!("{value:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(value: f64, limit: Limit) -> bool {
        let mut table = Table::default();
        table.add(Row { what: String::new(), value, limit, note: String::new() });
        table.print()
    }

    #[test]
    fn a_limit_is_kept_up_to_itself_and_never_by_what_is_no_number() {
        assert!(kept(1.02, Limit::AtMost(1.02)) && !kept(1.021, Limit::AtMost(1.02)));
        assert!(kept(0.8, Limit::AtLeast(0.8)) && !kept(0.79, Limit::AtLeast(0.8)));
        assert!(!kept(f64::NAN, Limit::AtMost(1.0)) && !kept(f64::NAN, Limit::AtLeast(1.0)));
        assert!(!Table::default().print(), "nothing was measured");
    }
}
