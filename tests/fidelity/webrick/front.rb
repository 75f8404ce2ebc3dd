# A thread for each client connection, and for each thread a connection to the back.
require 'net/http'
require 'webrick'

PORT, BACK_PORT = ARGV.map { |argument| Integer(argument) }

def ask(path)
  back = Thread.current[:back] ||= begin
    http = Net::HTTP.new('127.0.0.1', BACK_PORT)
    # The default closes a connection that was idle for 2 seconds.
    http.keep_alive_timeout = 600
    http.start
  end
  back.get(path).body
end

class Forward < WEBrick::HTTPServlet::AbstractServlet
  def do_GET(request, response)
    response.body = ask(request.path)
  end
end

Thread.new do
  (0..).each do |number|
    ask("/background/#{number}")
    sleep 0.05
  end
end

log = WEBrick::Log.new($stderr, WEBrick::Log::WARN)
server = WEBrick::HTTPServer.new(BindAddress: '127.0.0.1', Port: PORT, Logger: log, AccessLog: [],
                                 MaxClients: 512, RequestTimeout: 600)
# Head and body leave in writes of their own: without this each would wait 40 ms for an ACK.
server.listeners.each { |socket| socket.setsockopt(:TCP, :NODELAY, true) }
server.mount('/', Forward)
trap('INT') { server.shutdown }
server.start
