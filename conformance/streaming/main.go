// Drives a CRI streaming URL with Kubernetes' own client library and prints what it saw, as JSON.
//
//	streaming exec         -url URL -transport spdy|websocket|fallback [-stdin TEXT] [-zeros N] [-hold]
//	                       [-stdout] [-stderr] [-tty] [-size WxH,WxH...] [-protocols P,P...] [-timeout D]
//	streaming port-forward -url URL -transport spdy|websocket|fallback [-ports P,P...] [-connections N]
//	                       [-send TEXT] [-keep-open] [-timeout D]
//
// "exec" serves attach as well. Exit status: 0 when the scenario was carried out, whatever it saw; 2 otherwise.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	streamhttp "k8s.io/streaming/pkg/httpstream"
)

// As kubectl decides when a WebSocket is refused.
func shouldFallBack(err error) bool {
	return streamhttp.IsUpgradeFailure(err) || streamhttp.IsHTTPSProxyError(err)
}

func config(u *url.URL) *rest.Config {
	return &rest.Config{Host: u.Host, TLSClientConfig: rest.TLSClientConfig{Insecure: u.Scheme == "https"}}
}

// Keeps the start of what is written, and the sum of all of it.
type sink struct {
	mutex sync.Mutex
	count int64
	sum   hash.Hash
	start []byte
}

func newSink() *sink { return &sink{sum: sha256.New()} }

func (s *sink) Write(p []byte) (int, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.count += int64(len(p))
	s.sum.Write(p)
	if room := 4096 - len(s.start); room > 0 {
		s.start = append(s.start, p[:min(room, len(p))]...)
	}
	return len(p), nil
}

type output struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
	Text   string `json:"text"`
}

func (s *sink) output() output {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return output{s.count, hex.EncodeToString(s.sum.Sum(nil)), string(s.start)}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// Never gives anything, until the scenario is over.
type silence struct{ over <-chan struct{} }

func (s silence) Read([]byte) (int, error) {
	<-s.over
	return 0, io.EOF
}

// Sizes one after another, with time between them for a program to notice.
type sizes struct {
	left  []remotecommand.TerminalSize
	first bool
	over  <-chan struct{}
}

func (s *sizes) Next() *remotecommand.TerminalSize {
	if !s.first {
		select {
		case <-s.over:
			return nil
		case <-time.After(300 * time.Millisecond):
		}
	}
	s.first = false
	if len(s.left) == 0 {
		<-s.over
		return nil
	}
	size := s.left[0]
	s.left = s.left[1:]
	return &size
}

type execResult struct {
	Stdout output `json:"stdout"`
	Stderr output `json:"stderr"`
	// The process's exit code; null if that is not known.
	ExitCode *int `json:"exit_code"`
	// What the executor returned instead.
	Error   string  `json:"error"`
	Seconds float64 `json:"seconds"`
}

func runExec(arguments []string) error {
	flags := flag.NewFlagSet("exec", flag.ExitOnError)
	target := flags.String("url", "", "what the runtime answered")
	transport := flags.String("transport", "spdy", "spdy, websocket or fallback")
	stdin := flags.String("stdin", "", "text for standard input")
	count := flags.Int64("zeros", 0, "zero bytes for standard input, after the text")
	hold := flags.Bool("hold", false, "keep standard input open")
	stdout := flags.Bool("stdout", false, "take standard output")
	stderr := flags.Bool("stderr", false, "take standard error")
	tty := flags.Bool("tty", false, "a terminal")
	size := flags.String("size", "", "sizes of the terminal, one after another")
	protocols := flags.String("protocols", "", "protocols to offer instead of the library's")
	timeout := flags.Duration("timeout", time.Minute, "when to leave")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	u, err := url.Parse(*target)
	if err != nil {
		return err
	}
	executor, err := newExecutor(u, *transport, *protocols)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()

	out, errors_ := newSink(), newSink()
	options := remotecommand.StreamOptions{Tty: *tty}
	if *stdout {
		options.Stdout = out
	}
	if *stderr {
		options.Stderr = errors_
	}
	var inputs []io.Reader
	if *stdin != "" {
		inputs = append(inputs, strings.NewReader(*stdin))
	}
	if *count > 0 {
		inputs = append(inputs, io.LimitReader(zeros{}, *count))
	}
	if *hold {
		inputs = append(inputs, silence{ctx.Done()})
	}
	if len(inputs) > 0 {
		options.Stdin = io.MultiReader(inputs...)
	}
	if *size != "" {
		queue := &sizes{first: true, over: ctx.Done()}
		for _, text := range strings.Split(*size, ",") {
			var one remotecommand.TerminalSize
			if _, err := fmt.Sscanf(text, "%dx%d", &one.Width, &one.Height); err != nil {
				return fmt.Errorf("size %q: %w", text, err)
			}
			queue.left = append(queue.left, one)
		}
		options.TerminalSizeQueue = queue
	}

	begun := time.Now()
	err = executor.StreamWithContext(ctx, options)
	result := execResult{Stdout: out.output(), Stderr: errors_.output(), Seconds: time.Since(begun).Seconds()}
	var exit exec.CodeExitError
	switch code := 0; {
	case err == nil:
		result.ExitCode = &code
	case errors.As(err, &exit):
		result.ExitCode = &exit.Code
	default:
		result.Error = err.Error()
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

func newExecutor(u *url.URL, transport, protocols string) (remotecommand.Executor, error) {
	var offered []string
	if protocols != "" {
		offered = strings.Split(protocols, ",")
	}
	overSPDY := func() (remotecommand.Executor, error) {
		if offered == nil {
			return remotecommand.NewSPDYExecutor(config(u), http.MethodPost, u)
		}
		roundTripper, upgrader, err := spdy.RoundTripperFor(config(u))
		if err != nil {
			return nil, err
		}
		return remotecommand.NewSPDYExecutorForProtocols(roundTripper, upgrader, http.MethodPost, u, offered...)
	}
	overWebSocket := func() (remotecommand.Executor, error) {
		if offered == nil {
			return remotecommand.NewWebSocketExecutor(config(u), http.MethodGet, u.String())
		}
		return remotecommand.NewWebSocketExecutorForProtocols(config(u), http.MethodGet, u.String(), offered...)
	}
	switch transport {
	case "spdy":
		return overSPDY()
	case "websocket":
		return overWebSocket()
	case "fallback":
		second, err := remotecommand.NewSPDYExecutor(config(u), http.MethodPost, u)
		if err != nil {
			return nil, err
		}
		first, err := overWebSocket()
		if err != nil {
			return nil, err
		}
		return remotecommand.NewFallbackExecutor(first, second, shouldFallBack)
	}
	return nil, fmt.Errorf("transport %q", transport)
}

type answer struct {
	Port  uint16 `json:"port"`
	Text  string `json:"text"`
	Error string `json:"error"`
}

type forwardResult struct {
	Answers []answer `json:"answers"`
	// What the library reported of connections that failed.
	Errors string `json:"errors"`
	// Why forwarding ended before it was told to.
	Ended string `json:"ended"`
}

func runPortForward(arguments []string) error {
	flags := flag.NewFlagSet("port-forward", flag.ExitOnError)
	target := flags.String("url", "", "what the runtime answered")
	transport := flags.String("transport", "spdy", "spdy, websocket or fallback")
	ports := flags.String("ports", "80", "ports inside the sandbox")
	connections := flags.Int("connections", 1, "connections to each port, all at once")
	send := flags.String("send", "", "text for each connection; its number follows")
	keepOpen := flags.Bool("keep-open", false, "do not close the sending side")
	timeout := flags.Duration("timeout", time.Minute, "when to leave")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	u, err := url.Parse(*target)
	if err != nil {
		return err
	}
	dialer, err := newDialer(u, *transport)
	if err != nil {
		return err
	}
	var local []string
	for _, port := range strings.Split(*ports, ",") {
		local = append(local, ":"+port)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	reported := newSink()
	// The library tells failed connections to this hook, and then closes the session by itself.
	runtime.ErrorHandlers = []runtime.ErrorHandler{func(_ context.Context, err error, message string, _ ...any) {
		fmt.Fprintln(reported, message, err)
	}}
	forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, local, stop, ready, io.Discard, reported)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- forwarder.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		return err
	case <-time.After(*timeout):
		return errors.New("not ready in time")
	}
	forwarded, err := forwarder.GetPorts()
	if err != nil {
		return err
	}
	var result forwardResult
	result.Answers = make([]answer, len(forwarded)**connections)
	var all sync.WaitGroup
	for i, port := range forwarded {
		for j := range *connections {
			index := i**connections + j
			all.Go(func() {
				text := ""
				if *send != "" {
					text = fmt.Sprintf("%s%d", *send, index)
				}
				result.Answers[index] = exchange(port.Local, port.Remote, text, *keepOpen, *timeout)
			})
		}
	}
	all.Wait()
	select {
	case err := <-ended:
		result.Ended = fmt.Sprint(err)
	default:
		close(stop)
		<-ended
	}
	result.Errors = reported.output().Text
	return json.NewEncoder(os.Stdout).Encode(result)
}

// One connection: sends, closes its sending side, reads to the end.
func exchange(local, remote uint16, text string, keepOpen bool, timeout time.Duration) answer {
	result := answer{Port: remote}
	connection, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", local))
	if err != nil {
		result.Error = err.Error()
		return result
	}
	defer connection.Close()
	connection.SetDeadline(time.Now().Add(timeout))
	_, err = io.WriteString(connection, text)
	if err == nil && !keepOpen {
		err = connection.(*net.TCPConn).CloseWrite()
	}
	received, readErr := io.ReadAll(connection)
	result.Text = string(received)
	if err = errors.Join(err, readErr); err != nil {
		result.Error = err.Error()
	}
	return result
}

func newDialer(u *url.URL, transport string) (httpstream.Dialer, error) {
	roundTripper, upgrader, err := spdy.RoundTripperFor(config(u))
	if err != nil {
		return nil, err
	}
	plain := spdy.NewDialer(upgrader, &http.Client{Transport: roundTripper}, http.MethodPost, u)
	if transport == "spdy" {
		return plain, nil
	}
	tunnel, err := portforward.NewSPDYOverWebsocketDialer(u, config(u))
	if err != nil {
		return nil, err
	}
	switch transport {
	case "websocket":
		return tunnel, nil
	case "fallback":
		return portforward.NewFallbackDialer(tunnel, plain, shouldFallBack), nil
	}
	return nil, fmt.Errorf("transport %q", transport)
}

func main() {
	run := map[string]func([]string) error{"exec": runExec, "port-forward": runPortForward}
	if len(os.Args) < 2 || run[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: streaming exec|port-forward -url URL ...")
		os.Exit(2)
	}
	if err := run[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "streaming:", err)
		os.Exit(2)
	}
}
