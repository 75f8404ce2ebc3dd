# A reactor thread reads slow requests, a pool of 16 threads works for them, and each thread keeps
# a connection to the back, whose port is in BACK_PORT.
require 'net/http'

def ask(path)
  back = Thread.current[:back] ||= begin
    http = Net::HTTP.new('127.0.0.1', Integer(ENV.fetch('BACK_PORT')))
    # The default closes a connection that was idle for 2 seconds.
    http.keep_alive_timeout = 600
    http.start
  end
  back.get(path).body
end

Thread.new do
  (0..).each do |number|
    ask("/background/#{number}")
    sleep 0.05
  end
end

run(lambda do |environment|
  body = ask(environment['PATH_INFO'])
  [200, { 'Content-Length' => body.bytesize.to_s }, [body]]
end)
