package pcrm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/big"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/pcrm-project/pcrm/pcrm/internal/regular"
)

// Config is a parsed pcrm.toml with all defaults filled in.
type Config struct {
	Prior      string // one of Priors
	Constraint Constraint
	Targets    *Targets // targets to fit a constraint to; if set, Constraint is empty

	Form                     string // "pair" or "token"
	LabelSmoothing           float64
	CenterRewardsCoefficient float64

	DPOBeta float64
}

// document is the file as written. nil means that a key is absent.
type document struct {
	Constraint Settings `toml:"constraint"`
	Loss       struct {
		Form                     string  `toml:"form"`
		LabelSmoothing           float64 `toml:"label_smoothing"`
		CenterRewardsCoefficient float64 `toml:"center_rewards_coefficient"`
	} `toml:"loss"`
	DPO struct {
		Beta float64 `toml:"beta"`
	} `toml:"dpo"`
}

// maxConfig is thirty times the size of a file from pcrm fit. The time of go-toml is
// quadratic in the number of unknown keys: one second for a file of this size, an hour for
// a megabyte.
const maxConfig = 16 << 10

// maxUnknown limits the error about unknown keys to a readable length.
const maxUnknown = 20

// LoadConfig reads a TOML file with the settings of a reward model. See [ParseConfig] for
// the format.
//
// Errors: those of [ParseConfig]; an [*os.PathError] if the file cannot be read or is not
// a regular file (a pipe, for example).
func LoadConfig(path string) (Config, error) { return LoadConfigFor(RewardTask, path) }

// LoadConfigFor is [LoadConfig] for the given task. The format is the same; only the
// published setting that fills in missing values differs.
func LoadConfigFor(task Task, path string) (Config, error) {
	file, _, err := regular.Open(path)
	if err != nil {
		return Config{}, err
	}
	defer file.Close()
	// Read one byte more than allowed, because the file may grow while it is read.
	data, err := io.ReadAll(io.LimitReader(file, maxConfig+1))
	if err != nil {
		return Config{}, err
	}
	return ParseConfig(task, path, data)
}

// ParseConfig parses the settings of a training run. Every key is optional:
//
//	[constraint]                    # see Settings.Resolve
//	prior = "length_ratio"          # one of Priors
//	preset = "alpaca/length_ratio"  # a published setting, see LookupPreset
//	beta1 = 10.0                    # each value overrides the preset's
//	beta2 = 0.001
//	beta3 = -5.0
//	floor = 2.0                     # floor and cap clip delta; cap may be inf
//	cap = 12.0
//	target_alike = 1.0              # instead of betas, floor and cap; see Settings.Targets
//	target_unlike = 3.0
//	win_alike = 0.73                # the same targets, as win probabilities
//	win_unlike = 0.95
//	delta = 4.5                     # for prior = "fixed"; may be inf
//	low = 4.0                       # for prior = "random"
//	high = 5.0
//	seed = 0
//
//	[loss]
//	form = "pair"                   # or "token"
//	label_smoothing = 0.0
//	center_rewards_coefficient = 0.0
//
//	[dpo]
//	beta = 0.1
//
// A UTF-8 byte order mark at the start is ignored. Any number may be written as an integer.
// The seed is at most 2^63 - 1, TOML's largest integer.
//
// Errors: a document over 16 KiB; malformed TOML; an unknown key; a value of the wrong type or
// out of range; settings that [Settings.Resolve] rejects or that the form does not use. Each
// error wraps an [*ArgumentError] and begins with name, usually the path of the file, and the
// line number.
func ParseConfig(task Task, name string, data []byte) (Config, error) {
	if len(data) > maxConfig {
		line := 1 + bytes.Count(data[:maxConfig], []byte("\n"))
		return Config{}, atLine(name, line, argErr("TOML", -1, "must be at most %d bytes long", maxConfig))
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // some editors write it; TOML does not allow it
	var s document
	s.Loss.Form, s.DPO.Beta = "pair", 0.1
	if err := toml.NewDecoder(bytes.NewReader(decimals(data))).DisallowUnknownFields().Decode(&s); err != nil {
		return Config{}, decodingError(name, err)
	}
	if err := checkCase(name, data); err != nil {
		return Config{}, err
	}
	c := Config{
		Form:                     s.Loss.Form,
		LabelSmoothing:           s.Loss.LabelSmoothing,
		CenterRewardsCoefficient: s.Loss.CenterRewardsCoefficient,
		DPOBeta:                  s.DPO.Beta,
	}
	var err error
	if c.Prior, c.Targets, err = s.Constraint.Targets(); err == nil && c.Targets == nil {
		c.Prior, c.Constraint, err = s.Constraint.Resolve(task)
	}
	if err != nil {
		return Config{}, settingError(name, data, "constraint", err)
	}
	if err := c.checkLoss(); err != nil {
		return Config{}, settingError(name, data, "loss", err)
	}
	if !(c.DPOBeta > 0 && c.DPOBeta <= math.MaxFloat64) {
		return Config{}, settingError(name, data, "dpo", argErr("beta", -1, "must be finite and greater than 0, got %v", c.DPOBeta))
	}
	return c, nil
}

func (c *Config) checkLoss() error {
	if c.Form != "pair" && c.Form != "token" {
		return argErr("form", -1, "must be pair or token, got %q", c.Form)
	}
	o := RewardOptions{LabelSmoothing: c.LabelSmoothing, CenterRewardsCoefficient: c.CenterRewardsCoefficient}
	if err := o.Validate(); err != nil {
		return err
	}
	if c.Form == "token" {
		if c.LabelSmoothing != 0 {
			return argErr("label_smoothing", -1, "must be 0 with form = \"token\", which does not use it, got %v", c.LabelSmoothing)
		}
		if c.CenterRewardsCoefficient != 0 {
			return argErr("center_rewards_coefficient", -1, "must be 0 with form = \"token\", which does not use it, got %v", c.CenterRewardsCoefficient)
		}
	}
	return nil
}

// decodingError adds file, line and key to an error of go-toml.
func decodingError(name string, err error) error {
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		var all []error
		for _, e := range unknown.Errors[:min(len(unknown.Errors), maxUnknown)] {
			line, _ := e.Position()
			all = append(all, atLine(name, line, argErr(strings.Join(e.Key(), "."), -1, "is not a key: %s", knownKeys(e.Key()))))
		}
		return errors.Join(all...)
	}
	var bad *toml.DecodeError
	if !errors.As(err, &bad) {
		return err
	}
	line, _ := bad.Position()
	reason := strings.TrimPrefix(bad.Error(), "toml: ")
	if len(bad.Key()) == 0 {
		return atLine(name, line, argErr("TOML", -1, "is malformed: %s", reason))
	}
	// "cannot decode TOML string into struct field X of type float64" uses names that
	// users do not know.
	if is, goType, ok := strings.Cut(reason, " into struct field "); ok {
		goType = goType[strings.LastIndex(goType, " ")+1:]
		kinds := map[string]string{"float64": "a number", "uint64": "an integer of at least 0", "string": "a string"}
		must, ok := kinds[goType]
		if !ok {
			must = "a table"
		}
		reason = "must be " + must + ", got a " + strings.TrimPrefix(is, "cannot decode ")
	} else if strings.HasSuffix(reason, strconv.ErrRange.Error()) {
		reason = fmt.Sprintf("must be a number of at most %g", math.MaxFloat64)
	} else {
		reason = "cannot be read: " + reason
	}
	return atLine(name, line, argErr(strings.Join(bad.Key(), "."), -1, "%s", reason))
}

// knownKeys lists the keys that are allowed where an unknown key was found.
func knownKeys(key []string) string {
	where, t := "the tables are", reflect.TypeFor[document]()
	if len(key) > 1 {
		for f := range t.Fields() {
			if strings.EqualFold(f.Tag.Get("toml"), key[0]) {
				where, t = "the keys of ["+f.Tag.Get("toml")+"] are", f.Type
				break
			}
		}
	}
	var keys []string
	for f := range t.Fields() {
		keys = append(keys, f.Tag.Get("toml"))
	}
	return where + " " + strings.Join(keys, ", ")
}

// settingError adds file, line and key to an error about a decoded value.
func settingError(name string, data []byte, table string, err error) error {
	var argument *ArgumentError
	if !errors.As(err, &argument) {
		return err
	}
	lines := keyLines(data)
	line := lines[table]
	// The error may concern several keys, or a key that is not in the file: an invalid
	// delta results from the betas.
	for _, key := range []string{argument.Argument, "beta3", "beta1", "beta2", "floor", "cap", "low", "high", "preset", "prior"} {
		if at, ok := lines[table+"."+key]; ok {
			line = at
			break
		}
	}
	return atLine(name, line, argErr(table+"."+argument.Argument, -1, "%s", argument.Reason))
}

func atLine(name string, line int, err error) error {
	return fmt.Errorf("%s:%d: %w", name, line, err)
}

// checkCase rejects keys that are not in lower case. go-toml ignores case; TOML does not.
func checkCase(name string, data []byte) error {
	lines := keyLines(data)
	for _, key := range slices.SortedFunc(maps.Keys(lines), func(a, b string) int { return lines[a] - lines[b] }) {
		if key != strings.ToLower(key) {
			return atLine(name, lines[key], argErr(key, -1, "is not a key: %s", knownKeys(strings.Split(key, "."))))
		}
	}
	return nil
}

// decimals rewrites integers such as 0x10 in decimal, because go-toml reads only decimal
// integers into a float64. Line numbers do not change.
func decimals(data []byte) []byte {
	var p unstable.Parser
	p.Reset(data)
	var result []byte
	done := 0
	var rewrite func(e *unstable.Node)
	rewrite = func(e *unstable.Node) {
		switch value := e.Value(); value.Kind {
		case unstable.InlineTable:
			for child := value.Children(); child.Next(); {
				rewrite(child.Node())
			}
		case unstable.Integer:
			// Only 0x, 0o and 0b, because SetString would read 010 as octal. The decoder reports malformed numbers.
			text := string(value.Data)
			if n, ok := new(big.Int).SetString(text, 0); ok && len(text) > 2 && strings.Contains("xob", text[1:2]) {
				result = append(append(result, data[done:value.Raw.Offset]...), n.String()...)
				done = int(value.Raw.Offset + value.Raw.Length)
			}
		}
	}
	for p.NextExpression() {
		if e := p.Expression(); e.Kind == unstable.KeyValue {
			rewrite(e)
		}
	}
	return append(result, data[done:]...)
}

// keyLines returns the line of every dotted key of a document that go-toml has decoded.
func keyLines(data []byte) map[string]int {
	lines := map[string]int{}
	var p unstable.Parser
	p.Reset(data)
	var enter func(table string, e *unstable.Node) string
	enter = func(table string, e *unstable.Node) string {
		path := table
		for key := e.Key(); key.Next(); {
			path = strings.TrimPrefix(path+"."+string(key.Node().Data), ".")
			lines[path] = p.Shape(key.Node().Raw).Start.Line
		}
		if e.Kind == unstable.KeyValue && e.Value().Kind == unstable.InlineTable {
			for child := e.Value().Children(); child.Next(); {
				enter(path, child.Node())
			}
		}
		return path
	}
	table := ""
	for p.NextExpression() {
		if e := p.Expression(); e.Kind == unstable.KeyValue {
			enter(table, e)
		} else {
			table = enter("", e)
		}
	}
	return lines
}
