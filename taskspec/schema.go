package taskspec

import (
	"encoding/json"
	"strings"
)

// A form is how the value of a property is written.
type form struct {
	def    string        // a definition of the schema
	list   bool          // a list of them
	object func() schema // a mapping, instead of def
}

var (
	oneText   = form{def: "text"}
	texts     = form{def: "text", list: true}
	oneBool   = form{def: "boolean"}
	oneNumber = form{def: "number"}
	seconds   = form{def: "seconds"}
	count     = form{def: "count"} // not negative
)

// A schema is a JSON Schema.
type schema map[string]any

// schema returns the schema of a form.
func (f form) schema() schema {
	s := schema{"$ref": "#/$defs/" + f.def}
	if f.object != nil {
		s = f.object()
	}
	if f.list {
		return schema{"type": []string{"array", "null"}, "items": s}
	}
	return s
}

// schema returns the schema of a mapping with the table's properties.
func (t *table[T]) schema() schema {
	props := make(schema, len(t.properties))
	for _, prop := range t.properties {
		s := prop.form.schema()
		s["description"] = describeProperty(prop.doc, prop.on)
		if prop.set == nil {
			s["description"], s["deprecated"] = prop.ignored, true
		}
		props[prop.name] = s
	}
	return schema{
		"type": []string{"object", "null"}, "description": t.doc, "properties": props,
		"patternProperties": schema{"^x-": true}, "additionalProperties": false,
	}
}

func describeProperty(doc string, on []Kind) string {
	if len(on) == 0 {
		return doc
	}
	kinds := make([]string, len(on))
	for i, k := range on {
		kinds[i] = string(k)
	}
	return doc + " (" + strings.Join(kinds, " and ") + " steps)"
}

// dynamic is the pattern of a text that may become a value of another type when the task is rendered.
const dynamic = `^[^A-Za-z0-9]|\{\{`

// Schema returns the JSON Schema, of the draft 2020-12, of a task file as an author writes it, for
// editors. It knows the properties that the parser knows. What it cannot express, the parser finds: it
// is a help while writing and no replacement for a check.
func Schema() []byte {
	orDynamic := func(s schema) schema {
		return schema{"anyOf": []schema{s, {"type": "string", "pattern": dynamic}}}
	}
	s := taskTable.schema()
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["title"] = "kiln task"
	step := s["properties"].(schema)["steps"].(schema)
	step["items"].(schema)["anyOf"] = []schema{{"required": []string{"build"}}, {"required": []string{"cmd"}}, {"required": []string{"push"}}}
	s["$defs"] = schema{
		"any":     true,
		"text":    schema{"type": []string{"string", "number", "boolean", "null"}},
		"texts":   schema{"type": []string{"object", "null"}, "additionalProperties": schema{"$ref": "#/$defs/text"}},
		"files":   schema{"type": "object", "minProperties": 1, "additionalProperties": schema{"$ref": "#/$defs/text"}},
		"boolean": orDynamic(schema{"type": []string{"boolean", "null"}}),
		"number":  orDynamic(schema{"type": []string{"number", "null"}}),
		"seconds": orDynamic(schema{"type": []string{"number", "null"}}),
		"count":   orDynamic(schema{"type": []string{"number", "null"}, "minimum": 0}),
		"version": orDynamic(schema{"type": []string{"string", "null"}, "pattern": `^([vV]1\.[01]\.0|1\.0-[pP][rR][eE][vV][iI][eE][wW]-1)$`}),
		"cache":   orDynamic(schema{"type": []string{"string", "null"}, "pattern": `^([eE][nN]|[dD][iI][sS])[aA][bB][lL][eE][dD]$`}),
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil // cannot be: it has maps and texts only
	}
	return append(data, '\n')
}
