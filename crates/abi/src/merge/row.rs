//! Single cells of a row that a host wrote.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::query::{Aggregate, Select};
use crate::schema::{Kind, Schema};
use crate::value::{Value, text_list_items};

/// A column to read, and what it holds.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) kind: Kind,
}

impl Wanted {
    pub(super) fn of(select: Select, schema: &Schema) -> Wanted {
        let kind = match select {
            Select::Column(index)
            | Select::Aggregate(Aggregate::Sum(index) | Aggregate::Max(index)) => {
                schema.columns[index].kind
            }
            Select::Aggregate(Aggregate::Count) => Kind::Int,
        };
        Wanted { name: select.name(schema), kind }
    }
}

/// The cells of the `wanted` columns, in their order.
///
/// # Errors
/// When the row is no JSON object, lacks one of them, or holds something else in it.
pub(super) fn cells(
    row: &[u8],
    wanted: &[Wanted],
) -> Result<Vec<Value<'static>>, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(row);
    let cells = Row(wanted).deserialize(&mut reader)?;
    reader.end()?;
    Ok(cells)
}

struct Row<'w>(&'w [Wanted]);

impl<'de> DeserializeSeed<'de> for Row<'_> {
    type Value = Vec<Value<'static>>;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Row<'_> {
    type Value = Vec<Value<'static>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a row")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found: Vec<Option<Value<'static>>> = vec![None; self.0.len()];
        while let Some(place) = map.next_key_seed(Place(self.0))? {
            match place {
                Some(place) => found[place] = Some(map.next_value_seed(Cell(self.0[place].kind))?),
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let lacks = |wanted: &Wanted| A::Error::custom(format!("no column `{}`", wanted.name));
        found
            .into_iter()
            .zip(self.0)
            .map(|(cell, wanted)| cell.ok_or_else(|| lacks(wanted)))
            .collect()
    }
}

/// Which of the wanted columns a key names.
struct Place<'w>(&'w [Wanted]);

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = Option<usize>;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_str(self)
    }
}

impl Visitor<'_> for Place<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a column")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Option<usize>, E> {
        Ok(self.0.iter().position(|wanted| wanted.name == name))
    }
}

/// A cell of a column of this kind.
struct Cell(Kind);

impl<'de> DeserializeSeed<'de> for Cell {
    type Value = Value<'static>;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Cell {
    type Value = Value<'static>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }

    fn visit_unit<E: Error>(self) -> Result<Value<'static>, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<Value<'static>, E> {
        match self.0 {
            Kind::Bool => Ok(Value::Bool(flag)),
            _ => Err(E::invalid_type(serde::de::Unexpected::Bool(flag), &self)),
        }
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value<'static>, E> {
        match self.0 {
            Kind::Int => Ok(Value::Int(number)),
            Kind::Float => Ok(Value::Float(number as f64)),
            _ => Err(E::invalid_type(serde::de::Unexpected::Signed(number), &self)),
        }
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value<'static>, E> {
        match i64::try_from(number) {
            Ok(number) => self.visit_i64(number),
            Err(_) => Err(E::invalid_value(serde::de::Unexpected::Unsigned(number), &self)),
        }
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value<'static>, E> {
        match self.0 {
            Kind::Float => Ok(Value::Float(number)),
            _ => Err(E::invalid_type(serde::de::Unexpected::Float(number), &self)),
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value<'static>, E> {
        match self.0 {
            Kind::Text => Ok(Value::owned_text(text.as_bytes())),
            _ => Err(E::invalid_type(serde::de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value<'static>, A::Error> {
        if self.0 != Kind::TextList {
            return Err(A::Error::invalid_type(serde::de::Unexpected::Seq, &self));
        }
        let mut texts = Vec::new();
        while let Some(text) = list.next_element::<Cow<'_, str>>()? {
            texts.extend_from_slice(text.as_bytes());
            texts.push(0);
        }
        Ok(Value::TextList(texts.into()))
    }
}

/// Appends a cell as JSON.
pub(super) fn write(out: &mut Vec<u8>, value: &Value<'_>) {
    let json = match value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(flag) => (*flag).into(),
        Value::Int(number) => (*number).into(),
        Value::Float(number) => (*number).into(), // Null where it is not finite, as hosts write it.
        Value::Text(text) => String::from_utf8_lossy(text).into(),
        Value::TextList(list) => text_list_items(list).map(String::from_utf8_lossy).collect(),
    };
    out.extend_from_slice(json.to_string().as_bytes());
}
