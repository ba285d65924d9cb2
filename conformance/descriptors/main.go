// Compares the CRI that pinnace was built with to the one that Kubernetes publishes.
//
//	descriptors FILE
//
// FILE is an encoded FileDescriptorSet. Every fact of both sides that reaches the wire or a generated
// client becomes one line of text: services and methods with their streaming flags, messages, fields
// with number, type, label, oneof and options, enum values, reserved ranges. The two sets of lines must
// be equal. Exit status: 0 equal, 1 different (the lines are printed), 2 unable to compare.
package main

import (
	"fmt"
	"os"
	"sort"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	published "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// One line of text per fact.
type facts map[string]bool

func (f facts) add(format string, args ...any) { f[fmt.Sprintf(format, args...)] = true }

func (f facts) file(d protoreflect.FileDescriptor) {
	f.add("package %s, syntax %s", d.Package(), d.Syntax())
	for i := range d.Services().Len() {
		s := d.Services().Get(i)
		f.add("service %s", s.FullName())
		for j := range s.Methods().Len() {
			m := s.Methods().Get(j)
			f.add("rpc %s: %s (stream %t) returns %s (stream %t)", m.FullName(),
				m.Input().FullName(), m.IsStreamingClient(), m.Output().FullName(), m.IsStreamingServer())
		}
	}
	for i := range d.Messages().Len() {
		f.message(d.Messages().Get(i))
	}
	for i := range d.Enums().Len() {
		f.enum(d.Enums().Get(i))
	}
}

func (f facts) message(d protoreflect.MessageDescriptor) {
	f.add("message %s", d.FullName())
	for i := range d.Fields().Len() {
		f.field(d.Fields().Get(i))
	}
	for i := range d.ReservedRanges().Len() {
		r := d.ReservedRanges().Get(i)
		f.add("reserved %s: %d to %d", d.FullName(), r[0], r[1]-1)
	}
	for i := range d.ReservedNames().Len() {
		f.add("reserved %s: %s", d.FullName(), d.ReservedNames().Get(i))
	}
	for i := range d.Messages().Len() {
		f.message(d.Messages().Get(i))
	}
	for i := range d.Enums().Len() {
		f.enum(d.Enums().Get(i))
	}
}

func (f facts) field(d protoreflect.FieldDescriptor) {
	kind := d.Kind().String()
	if d.Message() != nil {
		kind += " " + string(d.Message().FullName())
	}
	if d.Enum() != nil {
		kind += " " + string(d.Enum().FullName())
	}
	options, _ := d.Options().(*descriptorpb.FieldOptions)
	line := fmt.Sprintf("field %s = %d: %s %s, json %s", d.FullName(), d.Number(), d.Cardinality(), kind, d.JSONName())
	if o := d.ContainingOneof(); o != nil {
		line += fmt.Sprintf(", oneof %s", o.Name())
	}
	if d.HasOptionalKeyword() {
		line += ", optional"
	}
	if d.IsPacked() {
		line += ", packed"
	}
	if options.GetDeprecated() {
		line += ", deprecated"
	}
	if options.GetDebugRedact() {
		line += ", debug_redact"
	}
	f[line] = true
}

func (f facts) enum(d protoreflect.EnumDescriptor) {
	f.add("enum %s", d.FullName())
	for i := range d.Values().Len() {
		v := d.Values().Get(i)
		f.add("value %s.%s = %d", d.FullName(), v.Name(), v.Number())
	}
	for i := range d.ReservedRanges().Len() {
		r := d.ReservedRanges().Get(i)
		f.add("reserved %s: %d to %d", d.FullName(), r[0], r[1])
	}
}

// without returns, sorted, the lines of f that other lacks.
func (f facts) without(other facts) []string {
	var lines []string
	for line := range f {
		if !other[line] {
			lines = append(lines, line)
		}
	}
	sort.Strings(lines)
	return lines
}

func load(path string) (facts, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	set := &descriptorpb.FileDescriptorSet{}
	if err := proto.Unmarshal(data, set); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	files, err := protodesc.NewFiles(set)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	ours := facts{}
	files.RangeFiles(func(d protoreflect.FileDescriptor) bool {
		ours.file(d)
		return true
	})
	return ours, nil
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: descriptors FILE")
		os.Exit(2)
	}
	ours, err := load(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "descriptors:", err)
		os.Exit(2)
	}
	theirs := facts{}
	theirs.file(published.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto)

	var report strings.Builder
	for _, line := range theirs.without(ours) {
		fmt.Fprintf(&report, "only published: %s\n", line)
	}
	for _, line := range ours.without(theirs) {
		fmt.Fprintf(&report, "only ours:      %s\n", line)
	}
	if report.Len() > 0 {
		fmt.Print(report.String())
		os.Exit(1)
	}
	fmt.Printf("equal: %d facts\n", len(theirs))
}
