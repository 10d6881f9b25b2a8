//! Tables whose rows belong to a process: some columns are of the process table, by the same names.

/// Declares such a table: its columns and their order. `first` and `more` are columns of the process
/// table, in front of its own and behind them.
macro_rules! of_process {
    (
        $(#[$about:meta])* $columns:ident, $schema:ident $table:literal;
        first { $($first:ident)* }
        own { $(
            $own:ident $name:literal [$($alias:literal),*] $kind:ident $unit:ident $heading:literal
                $what:literal;
        )* }
        more { $($more:ident)* }
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $columns {
            /// A column of the process that it belongs to.
            Of(crate::proc::Column),
            $( #[doc = $what] $own, )*
        }

        impl $columns {
            /// Every column, in the order of the schema.
            pub const ALL: &'static [$columns] = &[
                $( $columns::Of(crate::proc::Column::$first), )*
                $( $columns::$own, )*
                $( $columns::Of(crate::proc::Column::$more), )*
            ];

            /// The column at this index of the schema.
            pub fn at(index: crate::schema::ColumnIndex) -> $columns {
                $columns::ALL[index]
            }
        }

        $(#[$about])*
        pub static $schema: crate::schema::Schema = crate::schema::Schema {
            name: $table,
            columns: &[
                $( crate::proc::PROC.columns[crate::proc::Column::$first as usize], )*
                $( crate::schema::ColumnSpec {
                    name: $name,
                    aliases: &[$($alias),*],
                    kind: crate::schema::Kind::$kind,
                    unit: crate::schema::Unit::$unit,
                    heading: $heading,
                    about: $what,
                }, )*
                $( crate::proc::PROC.columns[crate::proc::Column::$more as usize], )*
            ],
        };
    };
}

pub(crate) use of_process;
